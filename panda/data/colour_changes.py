"""Changes of colour, sharpness, noise and compression of image batches, on any device.

A patch has a list of changes, drawn from its own seed where it is read (`panda.data.augment`), and they are applied
where the network runs. Images are (N, 3, h, w) float32 RGB in grey values from 0 to 255, without rounding in between.
Each operation takes images and the parameters of each, and returns images of the same shape. None waits for a GPU.

Formulas and ranges are those of albumentations' `ColorJitter`, `RandomBrightnessContrast`, `GaussianBlur`, `GaussNoise`
and `ImageCompression`, and tests compare them. There are two differences. A grey value is rounded only by the JPEG
compression, and this compresses red as red, while albumentations swaps red and blue.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from panda.wsi.stain_variation import vary_stain

WHITE = 255.0
_GRAY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in OpenCV and JPEG
_TO_YCC = (_GRAY, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# ITU-T T.81, tables K.1 and K.2, of brightness and of colour
_BRIGHTNESS = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_COLOUR = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, *(99,) * 32,
)  # fmt: skip
_CACHED_PX = 2**16  # px of an image whose arrays fit into the cache of a processor
_CHANGED_ONE_BY_ONE = ("cpu",)  # devices
_BLOCK = 8  # px, the side of a block of JPEG

Parameters = tuple[float, ...]
Operation = Callable[[Tensor, Sequence[Parameters]], Tensor]


class Change(NamedTuple):
    """A change of one image: the name of an operation of `OPERATIONS`, and its parameters."""

    name: str
    parameters: Parameters


def apply_changes(images: Tensor, changes: Sequence[Sequence[Change]]) -> Tensor:
    """Apply to each image its own changes, in their order.

    On a CPU the images are changed one by one, because one fits into the cache. On a GPU each operation takes all
    images whose next change it is.

    Args:
        images: (N, 3, h, w) float32, RGB from 0 to 255; it may be overwritten.
        changes: The changes of each image.
    """
    if images.device.type in _CHANGED_ONE_BY_ONE and len(images) > 1:
        for number, mine in enumerate(changes):
            if mine:
                images[number] = apply_changes(images[number : number + 1], [mine])[0]
        return images
    for step in zip_longest(*changes):
        for name in sorted({change.name for change in step if change is not None}):
            numbers = [number for number, change in enumerate(step) if change is not None and change.name == name]
            parameters = [change.parameters for change in step if change is not None and change.name == name]
            if len(numbers) == len(images):
                images = OPERATIONS[name](images, parameters)
            else:
                chosen = _move(torch.tensor(numbers), images)
                images.index_copy_(0, chosen, OPERATIONS[name](images.index_select(0, chosen), parameters))
    return images


def _by_rows(change: Operation) -> Operation:
    """Let an operation, which changes each pixel by itself, work on a CPU by parts that stay in the cache."""

    @functools.wraps(change)
    def run(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
        if images.device.type != "cpu":
            return change(images, parameters)
        for rows in torch.split(images, max(1, _CACHED_PX // images.shape[3]), dim=2):
            rows.copy_(change(rows, parameters))
        return images

    return run


def change_brightness(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Multiply grey values by a factor."""
    (factor,) = _spread(images, parameters)
    return (images * factor).clamp_(0, WHITE)


def change_contrast(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Multiply by a factor the distance of grey values to the mean grey of the image."""
    (factor,) = _spread(images, parameters)
    mean = _compute_gray(images).mean((1, 2, 3), keepdim=True)
    return (images * factor).add_(mean * (1 - factor)).clamp_(0, WHITE)


def change_saturation(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Multiply by a factor the distance of channels to the grey of their pixel."""
    (factor,) = _spread(images, parameters)
    return (images * factor).add_(_compute_gray(images).mul_(1 - factor)).clamp_(0, WHITE)


@_by_rows
def change_hue(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Turn the hue by a share of the whole circle; value and saturation as in HSV stay."""
    (turn,) = _spread(images, parameters)
    red, green, blue = images.chunk(3, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp_min(1e-3).reciprocal_()
    hue = (red - green).mul_(scale).add_(4)
    hue.lerp_((blue - red).mul_(scale).add_(2), (value == green).float())
    hue.lerp_((green - blue).mul_(scale), (value == red).float())
    hue.add_(6 * turn)
    changed = torch.empty_like(images)
    for number, offset in enumerate((5.0, 3.0, 1.0)):
        place = hue + offset
        place.sub_((place / 6).floor_(), alpha=6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=changed[:, number : number + 1])
    return changed


def change_brightness_and_contrast(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Multiply grey values by a factor, and add a share of white."""
    factor, shift = _spread(images, parameters)
    return (images * factor).add_(shift * WHITE).clamp_(0, WHITE)


@_by_rows
def change_stain(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Change both stains, see `vary_stain`: two strengths, and two turns of three channels."""
    values = _move(torch.tensor(parameters), images)
    return vary_stain(images, values[:, :2], values[:, 2:].view(-1, 2, 3))


def blur(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Blur by a Gaussian of a standard deviation, px, that is cut off at a number of px from its middle, 1 or 2."""
    sigma, reach = (values[:, None] for values in torch.tensor(parameters).unbind(1))
    offsets = torch.arange(-2.0, 3.0)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= reach)
    taps = _move(weights / weights.sum(1, keepdim=True), images)[..., None, None, None].unbind(1)
    blurred = F.pad(images, (2, 2, 2, 2), mode="reflect")
    for axis in (2, 3):
        size = images.shape[axis]
        parts = [blurred.narrow(axis, tap, size) for tap in range(5)]
        blurred = parts[0] * taps[0]
        for part, tap in zip(parts[1:], taps[1:], strict=True):
            blurred.addcmul_(part, tap)
    return blurred


def add_noise(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Add normal noise to each channel: its standard deviation as a share of white, and its seed."""
    for image, (std, seed) in zip(images, parameters, strict=True):
        generator = torch.Generator(images.device).manual_seed(int(seed))
        noise = torch.randn(image.shape, generator=generator, device=images.device)
        image.add_(noise, alpha=std * WHITE)
    return images.clamp_(0, WHITE)


def compress(images: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Compress as JPEG of a quality from 1 to 100 does, with colours at half the resolution (4:2:0)."""
    quality = torch.tensor(parameters)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    height, width = images.shape[2:]
    missing = -width % (2 * _BLOCK), -height % (2 * _BLOCK)
    if any(missing):
        images = F.pad(images, (0, missing[0], 0, missing[1]), mode="replicate")
    planes = _mix_channels(images.round(), _TO_YCC).round_()
    brightness = _quantize(planes[:, :1] - 128, _BRIGHTNESS, scale).round_().add_(128)
    pairs = planes[:, 1:, ::2] + planes[:, 1:, 1::2]
    colour = _quantize(((pairs[..., ::2] + pairs[..., 1::2]) / 4).round_(), _COLOUR, scale).round_()
    colour = F.interpolate(colour, scale_factor=2.0, mode="bilinear")
    changed = _mix_channels(torch.cat([brightness, colour], 1), _TO_RGB)[..., :height, :width]
    return changed.round_().clamp_(0, WHITE)


def _quantize(planes: Tensor, table: Sequence[int], scale: Tensor) -> Tensor:
    """Round the cosine transform of each block of 8 x 8 px to multiples of a table, as libjpeg scales it."""
    steps = ((torch.tensor(table) * scale + 50) / 100).floor().clamp(1, WHITE)[:, None, None]
    steps, transform = _move(steps, planes), _move(_COSINES, planes)
    count, channels, height, width = planes.shape
    grid = (count, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = planes.reshape(grid).transpose(3, 4).reshape(count, channels, -1, _BLOCK**2)
    blocks = ((blocks @ transform.T) / steps).round_().mul_(steps) @ transform
    count, channels, rows, _, columns, _ = grid
    return blocks.view(count, channels, rows, columns, _BLOCK, _BLOCK).transpose(3, 4).reshape(planes.shape)


def _tabulate_cosines() -> Tensor:
    """Return the orthonormal cosine transform of a block, (64, 64)."""
    frequency, place = np.mgrid[:_BLOCK, :_BLOCK]
    rows = np.cos((2 * place + 1) * frequency * np.pi / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    rows[0] /= np.sqrt(2)
    return torch.from_numpy(np.kron(rows, rows)).float()


_COSINES = _tabulate_cosines()


def _mix_channels(images: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Multiply the channels of each pixel by a matrix (3, 3)."""
    first, second, third = images.chunk(3, 1)
    rows = [(first * row[0]).add_(second, alpha=row[1]).add_(third, alpha=row[2]) for row in matrix]
    return torch.cat(rows, dim=1)


def _compute_gray(images: Tensor) -> Tensor:
    """Return the grey of each pixel, (N, 1, h, w)."""
    return _mix_channels(images, (_GRAY,))


def _spread(images: Tensor, parameters: Sequence[Parameters]) -> tuple[Tensor, ...]:
    """Return each parameter of all images as (N, 1, 1, 1) on their device."""
    return _move(torch.tensor(parameters), images)[..., None, None, None].unbind(1)


def _move(values: Tensor, images: Tensor) -> Tensor:
    """Copy a few values to the device of images, without waiting for it."""
    return values.to(images.device, non_blocking=True)


OPERATIONS: Mapping[str, Operation] = {
    "brightness": change_brightness,
    "contrast": change_contrast,
    "saturation": change_saturation,
    "hue": change_hue,
    "brightness and contrast": change_brightness_and_contrast,
    "stain": change_stain,
    "blur": blur,
    "noise": add_noise,
    "compression": compress,
}
"""Every operation by its name in a `Change`."""
