"""Annotations that people drew in QuPath, ASAP, ImageScope or HALO, as label codes of their slide."""
