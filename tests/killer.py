"""Encoding of slides that kills its worker at one slide, in a module that workers import."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from panda.app.slide_encoding import LoadedEncoding, SlideEncoding
from panda.app.slide_work import DoneSlide
from panda.inference.feature_output import FeatureRecord

KILLER = "killer"


class KillingEncoding(SlideEncoding):
    """Encoding that ends the process at the slide `KILLER`."""

    def load(self) -> LoadedEncoding:
        """See `SlideEncoding.load`."""
        super().load()
        return _LoadedKiller(self.config)


class _LoadedKiller(LoadedEncoding):
    def __call__(self, path: Path) -> DoneSlide[FeatureRecord]:
        if path.stem == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(path)
