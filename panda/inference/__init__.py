"""Turn a trained network and a slide into a probability map, figures in mm² and files for other programs."""
