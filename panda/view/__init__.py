"""Look at slides and their maps at full resolution: a tile server for a browser on this machine."""
