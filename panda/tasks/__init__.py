"""Lightning modules, metrics, threshold search and checkpoints."""
