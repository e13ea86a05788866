"""From a trained network and a slide to a probability map, figures in mm² and files others can open."""
