"""Experiments on prostate whole-slide images: tumour segmentation and slide grading."""
