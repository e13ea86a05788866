"""Run a network: device, precision, memory layout, compilation and test-time augmentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from panda.inference.buffers import Buffers
from panda.inference.canvas import BUDGET
from panda.inference.modes import TTA, Precision
from panda.inference.tile_model import TileModel
from panda.models.probabilities import compute_cancer_classes
from panda.settings import Count, Settings, count_cores, rule

CPU_BATCH = 8
"""Tiles in a batch where nothing is tuned: a larger batch is no faster on a CPU."""

_MOST_POST = 4
"""One process writes the files of a slide in under a second, so more than 4 would wait."""

_MOST_READERS = 8
"""Threads from which on reading was slower again, on 16 cores."""

Move = Callable[[Tensor], Tensor]


def _make_symmetry(quarters: int, mirrored: bool) -> tuple[Move, Move]:
    """Return a symmetry of the square for (n, c, h, w), and its inverse for (n, h, w) or (n, k, h, w)."""

    def apply(image: Tensor) -> Tensor:
        image = image.rot90(quarters, (-2, -1)) if quarters else image
        return image.flip(-1) if mirrored else image

    def invert(prob: Tensor) -> Tensor:
        prob = prob.flip(-1) if mirrored else prob
        return prob.rot90(-quarters, (-2, -1)) if quarters else prob

    return apply, invert


_COPIES: dict[TTA, list[tuple[Move, Move]]] = {
    "none": [_make_symmetry(0, False)],
    "flip": [_make_symmetry(quarters, mirrored) for quarters in (0, 2) for mirrored in (False, True)],
    "d4": [_make_symmetry(quarters, mirrored) for quarters in range(4) for mirrored in (False, True)],
}


class EngineSettings(Settings):
    """How networks are run over slides.

    Args:
        device: `auto` takes CUDA, else Apple's GPU, else the CPU.
        precision: `fp32`, or `bf16` autocast. In training, `auto` takes what is fast on this device, and the checkpoint
            stores it with the threshold. In inference, `auto` takes the precision of the threshold, or what is fast
            here if a trial shows that the tumour area stays (`panda.inference.autotune`).
        compile: Whether the network goes through `torch.compile`, which takes some ten seconds: `always`, `never`, or
            `auto`. In inference on a CPU, `auto` compiles if there is enough work to pay for it.
        tta: Copies of each tile whose probabilities are averaged: `none`; `flip`, 4 by mirroring; `d4`, 8 with quarter
            turns too.
        batch_size: Tiles in a batch. `auto` is 8 on a CPU; on a GPU it is the smallest size that reaches 97 % of the
            best rate in a trial (`panda.inference.batch_size`).
        read_threads: Threads that read tiles ahead of the network. `auto` is one for each core, at most 8.
        canvas_mib: MiB of unfinished canvas held on the device; the rest is on the disk until it is finished.
        post_workers: In inference, processes that write the files of finished maps while the next slide is mapped.
            With 0 the same process does both in turn. `auto` is a quarter of the cores, at most 4.

    Raises:
        ConfigError: If a value is out of range, or the device or a compiler is absent.
    """

    node: ClassVar[str] = "engine"

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    tta: TTA = "none"
    batch_size: Count | Literal["auto"] = "auto"
    read_threads: Count | Literal["auto"] = "auto"
    canvas_mib: Count = BUDGET // 2**20
    post_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"

    @rule
    def _check_device(self) -> Iterator[str]:
        if self.device == "cuda" and not torch.cuda.is_available():
            yield "engine.device=cuda: no CUDA device was found; use engine.device=cpu"
        if self.device == "mps" and not torch.backends.mps.is_available():
            yield "engine.device=mps: no GPU of Apple was found; use engine.device=cpu"

    @rule
    def _check_compiler(self) -> Iterator[str]:
        if self.compile == "always" and not self.can_compile:
            yield (
                "engine.compile=always needs a C++ compiler (g++ or clang++), and none was found: install one, or use "
                "engine.compile=never"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device that `device` means on this machine."""
        if self.device != "auto":
            return torch.device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    @property
    def thread_count(self) -> int:
        """The number of threads that `read_threads` means on this machine."""
        return min(count_cores(), _MOST_READERS) if self.read_threads == "auto" else self.read_threads

    @property
    def post_process_count(self) -> int:
        """The number of processes that `post_workers` means on this machine."""
        return min(count_cores() // 4, _MOST_POST) if self.post_workers == "auto" else self.post_workers

    @property
    def can_compile(self) -> bool:
        """Whether `torch.compile` can run for this device."""
        return self.torch_device.type != "cpu" or has_compiler()

    @property
    def fast_precision(self) -> Precision:
        """bf16 if the device computes in it natively, otherwise fp32, because emulated bf16 is slower."""
        kind = self.torch_device.type
        native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native or (kind == "cpu" and _cpu_has_bf16()) else "fp32"

    def resolve_auto(self) -> EngineSettings:
        """Return settings with `precision=auto` replaced by what is fast here; thresholds are chosen on such maps."""
        precision = self.fast_precision if self.precision == "auto" else self.precision
        return self.model_copy(update={"precision": precision})

    def compute_mode(self, threshold_precision: Precision) -> ComputeMode:
        """Return the mode that these settings mean without a trial, if the threshold is of maps of a precision."""
        precision = threshold_precision if self.precision == "auto" else self.precision
        return ComputeMode(precision, self.compile == "always")

    def autocast(self) -> torch.autocast:
        """Return the autocast context of `precision` on the device; `auto` means fp32."""
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.precision == "bf16")


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which `torch.compile` needs on a CPU."""
    return any(map(shutil.which, ("g++", "clang++", "cl")))


def _cpu_has_bf16() -> bool:
    """Return whether torch reports instructions for bf16 on the CPU (AVX512-BF16 or AMX)."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(known() for known in asked if known is not None)


@dataclass(frozen=True)
class ComputeMode:
    """The part of the settings that determines the last digits of a probability."""

    precision: Precision
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}{', compiled' if self.compiled else ''}"


class InferenceModel(TileModel):
    """A segmentation network in evaluation mode, from tiles to cancer probabilities.

    These are (n, h, w), or (n, k, h, w) of several classes of cancer.

    Args:
        network: (n, 3, h, w) in [0, 1] to logits, see `panda.models.probabilities`; it is moved to the device.
        settings: Device, copies and batch size.
        mode: Precision and compilation.

    Attributes:
        batch_size: Most tiles that go through the network at once; None until `auto` is tuned on a GPU.
    """

    def __init__(self, network: nn.Module, settings: EngineSettings, mode: ComputeMode) -> None:
        device = settings.torch_device
        untuned = None if device.type == "cuda" else CPU_BATCH
        super().__init__(network, device, untuned if settings.batch_size == "auto" else settings.batch_size)
        self.settings = settings
        self.mode = mode
        self._buffers = Buffers(device)
        # The same numbers in the memory order that is fast for convolutions on CPUs and tensor cores.
        self._layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        self._network: Any = network.to(memory_format=self._layout)
        if mode.compiled:
            options: dict[str, Any] = {"freezing": True} if device.type == "cpu" else {}
            self._network = torch.compile(self._network, dynamic=False, options=options)

    def __call__(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Return the probabilities of images; see `TileModel`."""
        return self.compute_probabilities(self.compute_logits(images))

    def compute_logits(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Return the logits of images and their copies, (n, copies, channels, h, w), on the device; see `TileModel`."""
        return super().__call__(images)

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of `compute_logits`, averaged over the copies."""
        maps = []
        for (_, invert), own in zip(_COPIES[self.settings.tta], logits.unbind(1), strict=True):
            number, channels, *size = own.shape
            prob = self._buffers.empty((number, max(1, channels - 1), *size), torch.float32)
            compute_cancer_classes(own, out=prob)
            maps.append(invert(prob[:, 0] if prob.shape[1] == 1 else prob))
        return maps[0] if len(maps) == 1 else sum(maps[1:], maps[0]).div_(len(maps))

    def run(self, images: Tensor) -> Tensor:
        """See `TileModel.run`."""
        count = len(images)
        if self.mode.compiled and (rest := (self.batch_size or count) - count) > 0:
            # A batch of another size would be compiled again.
            images = torch.cat([images, images.new_zeros(rest, *images.shape[1:])])
        uploaded = self.upload(images)
        if uploaded.dtype == torch.uint8:
            uploaded = self._buffers.empty(tuple(uploaded.shape), torch.float32).copy_(uploaded).div_(255)
        batch = uploaded.permute(0, 3, 1, 2)
        copies = _COPIES[self.settings.tta]
        half = self.mode.precision == "bf16"
        # A frozen graph does not accept inference tensors.
        guard = torch.no_grad() if self.mode.compiled else torch.inference_mode()
        with guard, torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = [self._network(apply(batch).contiguous(memory_format=self._layout)) for apply, _ in copies]
            return (logits[0][:, None] if len(logits) == 1 else torch.stack(logits, dim=1))[:count]
