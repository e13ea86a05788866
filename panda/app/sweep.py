"""At the end of a multirun: one table and one page over all its jobs."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepPage(Callback):
    """Hydra callback that writes `sweep.csv` and `sweep.html` into the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, after the last job."""
        # Imported here: Hydra makes its callbacks before the doors know whether anything is to be drawn.
        from panda.report.sweep_page import write_sweep  # noqa: PLC0415

        page = write_sweep(Path(config.hydra.sweep.dir))
        print(f"sweep: {page}")
