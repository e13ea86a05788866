"""Whole-slide images: opening, frames, tissue, tile grids, label masks and synthetic slides."""
