"""Experiments on prostate whole-slide images: tumour segmentation and slide grading."""

from __future__ import annotations

import os

# Unless this is set before its first import, by whichever library, albumentations asks the network for its newest
# version and warns when it cannot. It has no other switch.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
