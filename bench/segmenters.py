"""Map slides with a given network by other libraries, each used as its documentation says.

An adapter gets the checkpoint, and returns a function that maps one slide into a folder and gives its mean score.
All get the same weights, tiles and overlap, and the two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from bench.project import MAPPED_TILE, OVERLAP
from panda.inference.predictor import restore_network
from panda.models.segmentation import Segmenter
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata

Run = Callable[[Path, Path], Callable[[], float]]
_BATCH = 8


def _network(checkpoint: Path) -> Segmenter:
    return restore_network(Segmenter, read_checkpoint(checkpoint, SegmentationMetadata)).eval()


def tiatoolbox(checkpoint: Path) -> Run:
    """Use the SemanticSegmentor of TIAToolbox over its own tissue mask, probabilities in zarr."""
    engine: Any = import_module("tiatoolbox.models.engine.semantic_segmentor")
    abc: Any = import_module("tiatoolbox.models.models_abc")
    config: Any = import_module("tiatoolbox.models.engine.io_config")
    wsireader: Any = import_module("tiatoolbox.wsicore.wsireader")
    network = _network(checkpoint)

    class Model(abc.ModelABC):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Any:
            return self.network(image)

        @staticmethod
        def infer_batch(model: Any, batch_data: Tensor, *, device: str) -> Any:
            with torch.inference_mode():
                image = batch_data.to(device).permute(0, 3, 1, 2).float() / 255
                prob = torch.sigmoid(model(image))
                return torch.cat([1 - prob, prob], 1).permute(0, 2, 3, 1).numpy()

    segmentor = engine.SemanticSegmentor(model=Model(), batch_size=_BATCH, num_workers=0, device="cpu", verbose=False)
    stride = round(MAPPED_TILE * (1 - OVERLAP))
    level = [{"units": "baseline", "resolution": 1.0}]
    how = config.IOSegmentorConfig(
        input_resolutions=level,
        output_resolutions=level,
        patch_input_shape=(MAPPED_TILE, MAPPED_TILE),
        patch_output_shape=(MAPPED_TILE, MAPPED_TILE),
        stride_shape=(stride, stride),
    )

    def run(path: Path, out: Path) -> Callable[[], float]:
        maps = segmentor.run(
            # Its own choice of a reader takes such a TIFF for a plain picture and loads all of it.
            images=[wsireader.OpenSlideWSIReader(path)],
            ioconfig=how,
            patch_mode=False,
            auto_get_mask=True,
            return_probabilities=True,
            output_type="zarr",
            save_dir=out / "made",
            overwrite=True,
        )
        where = next(iter(maps.values()))

        def mean() -> float:
            made: Any = zarr.open_group(str(where), mode="r")
            prob = np.asarray(made["probabilities"])[..., 1]
            return float(prob[prob > 0].mean())

        return mean

    return run


def monai(checkpoint: Path) -> Run:
    """Use the sliding window of MONAI over the whole level, which must be in memory: it knows no tissue."""
    inferers: Any = import_module("monai.inferers")
    readers: Any = import_module("monai.data.wsi_reader")
    network = _network(checkpoint)
    window = inferers.SlidingWindowInferer(
        roi_size=(MAPPED_TILE, MAPPED_TILE), sw_batch_size=_BATCH, overlap=OVERLAP, mode="gaussian"
    )

    def run(path: Path, out: Path) -> Callable[[], float]:
        reader = readers.WSIReader(backend="openslide", level=0)
        pixels, _ = reader.get_data(reader.read(str(path)))
        with torch.inference_mode():
            # the copy, for what the reader gives cannot be written to, which torch minds
            prob: Any = torch.sigmoid(window(torch.from_numpy(pixels.copy())[None].float() / 255, network)).numpy()
        zarr.save_array(str(out / "map.zarr"), prob[0, 0])
        return lambda: float(prob.mean())

    return run


SEGMENTERS: dict[str, Callable[[Path], Run]] = {"tiatoolbox": tiatoolbox, "monai": monai}
