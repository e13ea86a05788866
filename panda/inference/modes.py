"""Names of precisions and of test-time augmentations, apart from torch, which pages do not wait for."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16"]
TTA = Literal["none", "flip", "d4"]
