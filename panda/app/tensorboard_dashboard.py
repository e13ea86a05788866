"""Log a run to TensorBoard: event files in the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME, SESSION_END_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard.summary import hparams

from panda.app.dashboard import Dashboard, End, spare_run
from panda.files import remove

FOLDER = "tensorboard"


class TensorBoardDashboard(TensorBoardLogger, Dashboard):
    """Lightning's TensorBoard logger, which begins again for each session, because all of the run is logged again.

    Args:
        run_dir: Folder of the run.
        config: Flat settings of the run.
    """

    title = "TensorBoard"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        super().__init__(save_dir=str(run_dir.absolute()), name="", version=FOLDER, default_hp_metric=False)
        remove(run_dir / FOLDER)
        self._begin(config)

    @property
    def log_dir(self) -> str:
        """The folder of the event files, of whose name Lightning would expand variables."""
        return str(Path(self.save_dir) / FOLDER)

    @spare_run
    def _begin(self, config: Mapping[str, Any]) -> None:
        """Log the hyperparameters. Without a list of metrics, TensorBoard compares all of them."""
        settings = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
            for key, value in config.items()
        }
        _, start, _ = hparams(settings, {})  # type: ignore[no-untyped-call]
        self.experiment._get_file_writer().add_summary(start)
        self.put_table("config", ("key", "value"), [*settings.items()])
        self.experiment.flush()

    @spare_run
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as the base class does."""
        super().log_metrics(metrics, step)

    @spare_run
    def save(self) -> None:
        """Write what is waiting."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Write what is waiting, because the run evaluates after its training."""
        self.save()

    def put_picture(self, key: str, path: Path, epoch: int | None) -> None:
        """See `Dashboard`."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.experiment.add_image(key, pixels, global_step=epoch or 0, dataformats="HWC")

    def put_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as text."""
        lines = [columns, ["---"] * len(columns), *rows]
        cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in line] for line in lines]
        self.experiment.add_text(key, "\n".join(f"| {' | '.join(line)} |" for line in cells))

    def put_figures(self, figures: Mapping[str, float]) -> None:
        """See `Dashboard`."""
        for name, figure in figures.items():
            self.experiment.add_scalar(name, figure)

    def end(self, state: End) -> None:
        """See `Dashboard`."""
        if not self.has_failed:
            self._mark_end("STATUS_SUCCESS" if state == "finished" else "STATUS_FAILURE")

    @spare_run
    def _mark_end(self, status: str) -> None:
        content = HParamsPluginData(
            session_end_info=SessionEndInfo(status=Status.Value(status)), version=PLUGIN_DATA_VERSION
        )
        plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.SerializeToString())
        value = Summary.Value(tag=SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin))
        self.experiment._get_file_writer().add_summary(Summary(value=[value]))
        self.experiment.close()
