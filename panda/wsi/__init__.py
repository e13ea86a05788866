"""Whole-slide images: open slides, frames, tissue, tile grids and label masks."""
