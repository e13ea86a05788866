"""Train by a loop written by hand: OpenSlide, segmentation-models-pytorch and torch, nothing of `panda`.

Rotations and reflections, Adam in one cycle, Dice and cross-entropy by halves, the weights of the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray

CANCER = {"radboud": (3, 4, 5), "karolinska": (2,)}
WHITE = 220
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

Picture = NDArray[np.uint8]


def level(path: Path, number: int) -> Picture:
    """Read a whole pyramid level, (h, w, 3) RGB."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), number, slide.level_dimensions[number]).convert("RGB"))


def cut(picture: Picture, size: int, stride: int) -> list[tuple[int, int]]:
    """List the corners (y, x) of patches with a tenth of tissue, over a picture padded to whole strides."""
    ys, xs = (range(0, max(1, side - size + stride), stride) for side in picture.shape[:2])
    tissue = picture.min(axis=2) < WHITE
    return [(y, x) for y in ys for x in xs if tissue[y : y + size, x : x + size].sum() >= 0.1 * size * size]


def patch(picture: NDArray[np.uint8], y: int, x: int, size: int, fill: int) -> NDArray[np.uint8]:
    """Return one patch, filled up past the edge."""
    part = picture[y : y + size, x : x + size]
    pad = [(0, size - part.shape[0]), (0, size - part.shape[1]), (0, 0)][: part.ndim]
    return np.pad(part, pad, constant_values=fill)


def turn(image: Picture, mask: Picture, way: int) -> tuple[Picture, Picture]:
    """Return one of the eight rotations and reflections."""
    return np.rot90(image[:: 1 - 2 * (way // 4)], way), np.rot90(mask[:: 1 - 2 * (way // 4)], way)


def unet(encoder: str, decoder: Sequence[int]) -> torch.nn.Module:
    """Build a U-Net with random weights."""
    torch.manual_seed(0)
    net: torch.nn.Module = smp.Unet(encoder, encoder_weights=None, decoder_channels=decoder)
    return net.to(memory_format=torch.channels_last)


def train(
    slides: Sequence[tuple[Path, Path, str]],
    net: torch.nn.Module,
    *,
    number: int,
    size: int,
    stride: int,
    steps: int,
    batch: int,
) -> torch.nn.Module:
    """Train a network on slides (image, mask, provider) at a pyramid level."""
    images, masks = [], []
    for path, mask, provider in slides:
        rgb = level(path, number)
        cancer = np.isin(level(mask, number)[: rgb.shape[0], : rgb.shape[1], 0], CANCER[provider]).astype(np.uint8)
        for y, x in cut(rgb, size, stride):
            images.append(patch(rgb, y, x, size, 255))
            masks.append(patch(cancer, y, x, size, 0))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    bce, dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    net.train()
    order: list[int] = []
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images)).tolist()
        picked, order = order[:batch], order[batch:]
        turned = [turn(images[i], masks[i], int(torch.randint(8, ()))) for i in picked]
        image = torch.from_numpy(np.stack([image for image, _ in turned])).permute(0, 3, 1, 2).float() / 255
        target = torch.from_numpy(np.stack([mask for _, mask in turned]))[:, None].float()
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(((image - MEAN) / STD).contiguous(memory_format=torch.channels_last))
        loss = (bce(logits.float(), target) + dice(logits.float(), target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    return net


@torch.inference_mode()
def predict(net: torch.nn.Module, picture: Picture, size: int, stride: int) -> NDArray[np.float32]:
    """Return the probability (h, w) of cancer, the mean of overlapping patches; 0 at px without a patch."""
    height, width = picture.shape[:2]
    total = np.zeros((height + size, width + size), np.float32)
    count = np.zeros_like(total)
    for y, x in cut(picture, size, stride):
        image = torch.from_numpy(patch(picture, y, x, size, 255)).permute(2, 0, 1)[None].float() / 255
        total[y : y + size, x : x + size] += torch.sigmoid(net((image - MEAN) / STD))[0, 0].numpy()
        count[y : y + size, x : x + size] += 1
    return np.asarray((total / np.maximum(count, 1))[:height, :width], np.float32)
