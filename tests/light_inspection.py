"""An inspection of slides that a worker of a cluster refuses if it imported torch, in a module that needs none."""

from __future__ import annotations

import sys

from panda.app.slide_inspection import SlideInspection
from panda.data.slide_rows import SlideRow


class LightInspection(SlideInspection):
    """Inspects slides without torch."""

    def __call__(self, row: SlideRow) -> int:
        assert "torch" not in sys.modules
        return super().__call__(row)
