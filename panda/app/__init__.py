"""From a configuration to a run: the only room that sees configuration objects."""
