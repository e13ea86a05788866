"""Map a slide with a segmentation checkpoint: from tiles to a probability canvas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from panda.errors import CheckpointError, SlideError
from panda.files import fingerprint, hold_lock, identity
from panda.inference.batch_size import tune_batch_size
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel
from panda.inference.tile_batches import TileReader, read_batches
from panda.inference.work_queue import make_blending_queue
from panda.models.token_segmenter import find_segmenter
from panda.tasks.checkpoint import ALTERED, Checkpoint, read_checkpoint
from panda.tasks.metadata import CheckpointMetadata, SegmentationMetadata
from panda.wsi.classes import ClassSet
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.grid import Grid, tissue_grid
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import STAIN_RULES, find_stain, normalize_stain
from panda.wsi.tissue import RULES, TissueMap

log = logging.getLogger(__name__)

N = TypeVar("N", bound=torch.nn.Module)
CornerReader = Callable[[int, int], NDArray[np.uint8]]
"""Reads a tile (p, p, 3) by its upper left corner in level-0 px."""

ENGINE_VERSION = 2
"""To be raised by each change that gives other last digits; it makes all canvases again."""


_MOST_BLENDING = 2
"""Batches that wait for their blending, or are blended, while the network maps the next one."""


class SegmentationPredictor:
    """A segmentation checkpoint, ready to map slides.

    Args:
        checkpoint: Read by `read_checkpoint(path, SegmentationMetadata)`.
        settings: Device, precision, batch.
    """

    def __init__(self, checkpoint: Checkpoint[SegmentationMetadata], settings: EngineSettings) -> None:
        self.checkpoint = checkpoint
        self.metadata = checkpoint.metadata
        self.settings = settings
        self.threshold = self.metadata.threshold
        self.fingerprint = checkpoint.fingerprint
        self.network = restore_network(find_segmenter(self.metadata.network), checkpoint).eval()
        self.model = InferenceModel(self.network, settings, settings.compute_mode(self.metadata.precision))

    @classmethod
    def from_checkpoint(cls, path: Path, settings: EngineSettings) -> SegmentationPredictor:
        """Read the checkpoint at `path`."""
        return cls(read_checkpoint(path, SegmentationMetadata), settings)

    @property
    def classes(self) -> ClassSet:
        """The classes of the network."""
        return self.metadata.classes

    @property
    def mode(self) -> ComputeMode:
        """Precision and compilation of the network."""
        return self.model.mode

    def make_grid(self, slide: Slide, tissue: TissueMap) -> Grid:
        """Return every tile that holds tissue, with the overlap that the checkpoint states."""
        patch = self.metadata.patch_size
        stride = max(1, round_px(patch * (1 - self.metadata.overlap)))
        resolution = self.metadata.resolution.resolve(slide)
        return tissue_grid(resolution, tissue, patch, stride, edge="shift", min_tissue=0.0)

    @property
    def batch_size(self) -> int:
        """Tiles in a batch; `auto` is tuned at the first use of a model on a GPU."""
        return tune_batch_size(self.model, self.metadata.patch_size)

    def make_tile_reader(self, slide: Slide, tissue: TissueMap, grid: Grid) -> CornerReader:
        """Return a function that reads a tile (p, p, 3) by its upper left corner in level-0 px.

        If the network was trained on normalized slides, the colours of the tile are normalized too.
        """
        size = (grid.patch_size, grid.patch_size)
        stain = find_stain(slide, tissue) if self.metadata.normalize else None

        def read(x: int, y: int) -> NDArray[np.uint8]:
            tile = slide.read(grid.resolution, (x, y), size)
            return tile if stain is None else normalize_stain(tile, stain)

        return read

    def fingerprint_canvas(self, slide: Slide, resolution: Resolution) -> str:
        """Return the hash of everything that determines a canvas: network, grid, mode, colours, slide and reader."""
        return fingerprint(
            {
                "network": self.fingerprint,
                "patch_size": self.metadata.patch_size,
                "overlap": self.metadata.overlap,
                "engine": ENGINE_VERSION,
                "precision": self.mode.precision,
                "compiled": self.mode.compiled,
                "tta": self.settings.tta,
                "downsample": resolution.downsample,
                "level": resolution.level,
                "mpp": resolution.mpp,
                "tissue_rules": RULES,
                "slide": identity(slide.path),
                "reader": slide.reader_name,
                **({"bounds": slide.bounds} if slide.bounds else {}),
                **({"normalize": [self.metadata.normalize, STAIN_RULES]} if self.metadata.normalize else {}),
                **({} if self.classes.is_binary else {"classes": self.classes.model_dump(mode="json")}),
            }
        )

    def predict(
        self, slide: Slide, tissue: TissueMap, path: Path, on_tiles: Callable[[int, int], None] | None = None
    ) -> Canvas:
        """Map one slide, or reuse the canvas at `path` if it has the same fingerprint.

        A damaged canvas is made again with a warning. Another process that needs the same path waits.

        Args:
            slide: The slide.
            tissue: Its tissue; only tiles that touch it are run.
            path: The zarr folder of the canvas, whole or absent.
            on_tiles: Called with (finished tiles, all tiles) after each batch.

        Returns:
            The `pred_canvas`: cancer probability at the network's working resolution, of each class of cancer.
        """
        with self.hold_canvas(slide, tissue, path, on_tiles) as canvas:
            return canvas

    @contextmanager
    def hold_canvas(
        self, slide: Slide, tissue: TissueMap, path: Path, on_tiles: Callable[[int, int], None] | None = None
    ) -> Iterator[Canvas]:
        """Yield the canvas of `predict`, locked against replacement by other processes.

        A canvas is read from the disk in parts, so a replacement would mix the maps of two networks.
        """
        with self.begin_canvas(slide, tissue, path, on_tiles) as canvas:
            yield canvas.result()

    @contextmanager
    def begin_canvas(
        self, slide: Slide, tissue: TissueMap, path: Path, on_tiles: Callable[[int, int], None] | None = None
    ) -> Iterator[Future[Canvas]]:
        """Yield what `hold_canvas` yields as soon as the network has run over all tiles.

        A thread blends the last tiles and flushes the files, while the network can run over the next slide.
        """
        resolution = self.metadata.resolution.resolve(slide)
        expected = self.fingerprint_canvas(slide, resolution)
        with hold_lock(path):
            canvas: Future[Canvas] = Future()
            if reused := _reuse_canvas(path, resolution, expected):
                canvas.set_result(reused)
            else:
                canvas = self._map(slide, tissue, path, expected, on_tiles)
            try:
                yield canvas
            finally:
                wait([canvas])

    def _map(
        self, slide: Slide, tissue: TissueMap, path: Path, expected: str, on_tiles: Callable[[int, int], None] | None
    ) -> Future[Canvas]:
        grid = self.make_grid(slide, tissue)
        resolution = grid.resolution
        if len(grid.working) == 0:
            raise SlideError(f"{slide.path}: no tile holds tissue at {resolution.width} × {resolution.height} px")
        order = grid.reading_order()
        positions = grid.working[order]
        read = self.make_tile_reader(slide, tissue, grid)
        device = self.settings.torch_device
        tiles: Iterator[TileReader] = (partial(read, x, y) for x, y in grid.level0[order].tolist())
        with ExitStack() as opened:
            writer = opened.enter_context(
                CanvasWriter(
                    path,
                    resolution,
                    grid.patch_size,
                    expected,
                    {"slide_id": slide.slide_id, "checkpoint": self.checkpoint.path.name, "tiles": len(grid)},
                    overlap=grid.patch_size - grid.stride,
                    expected=grid.working,
                    budget=self.settings.canvas_mib * 2**20,
                    device=device,
                    classes=self.classes,
                )
            )
            blending = opened.enter_context(make_blending_queue(_MOST_BLENDING))
            batches = read_batches(
                tiles,
                grid.patch_size,
                self.batch_size,
                threads=self.settings.thread_count,
                device=device,
                dtype=torch.float32 if device.type == "cpu" else torch.uint8,  # a quarter of the bytes to a GPU
            )

            def blend(logits: Tensor, where: NDArray[np.int64]) -> None:
                writer.add(self.model.compute_probabilities(logits), where)

            done = 0
            with closing(batches):
                for images in batches:
                    blending.submit(blend, self.model.compute_logits(images), positions[done : done + len(images)])
                    done += len(images)
                    if on_tiles:
                        on_tiles(done, len(grid))
            unfinished = opened.pop_all()

        def finish() -> Canvas:
            with unfinished:
                blending.finish()
                return writer.close()

        thread = ThreadPoolExecutor(1)
        try:
            return thread.submit(finish)
        finally:
            thread.shutdown(wait=False)


def _reuse_canvas(path: Path, resolution: Resolution, expected: str) -> Canvas | None:
    """Return the canvas at `path` if it is whole and has the expected fingerprint; warn of a damaged one."""
    if not path.is_dir():
        return None
    try:
        canvas = Canvas.open(path)
        if canvas.fingerprint != expected or canvas.resolution != resolution:
            return None
        canvas.check()
    except CheckpointError as error:
        log.warning("%s; it is made again", str(error).rpartition("; ")[0])
        return None
    return canvas


class _LinspaceOnCpu(TorchFunctionMode):
    """Make `torch.linspace` on the CPU, because encoders of smp read rates of stochastic depth from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


class _NoInitialization(TorchFunctionMode):
    """Skip `torch.nn.init` and random draws, because the weights of a checkpoint replace the initial ones."""

    _draws = (Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._draws or getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def restore_network(kind: type[N], checkpoint: Checkpoint[CheckpointMetadata]) -> N:
    """Build the network of a class that a checkpoint describes, and load its weights.

    Weights and options are compared before the network takes memory, because options that were edited can describe
    one of any size.
    """
    options, path = checkpoint.metadata.network, checkpoint.path
    of_pixels = () if "feature_dim" in options else ("mean", "std")
    if absent := [key for key in of_pixels if options.get(key) is None]:
        raise CheckpointError(f"checkpoint {path}: panda.network.{absent[0]} is missing; {ALTERED}")
    try:
        with torch.device("meta"), _LinspaceOnCpu():
            expected = kind(**options).state_dict()
    except Exception as error:  # the libraries raise many kinds of errors for unknown options
        raise CheckpointError(
            f"checkpoint {path}: panda.network describes no {kind.__name__} ({error}); {ALTERED}"
        ) from error
    shapes, found = (
        {key: tuple(value.shape) for key, value in part.items()} for part in (expected, checkpoint.weights)
    )
    if other := sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key)):
        raise CheckpointError(
            f"checkpoint {path}: its weights do not fit the network it describes: {len(other)} differ, the first is "
            f"state_dict.network.{other[0]}, which has the shape {found.get(other[0])} and not {shapes.get(other[0])}; "
            f"{ALTERED}"
        )
    with _NoInitialization():
        network = kind(**options)
    network.load_state_dict(checkpoint.weights, assign=True)
    return network
