"""Part e: time to read the patches of each kind of store, to write PNG, and the size of a patch."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.project import STORES, settings
from bench.results import Results
from bench.slides import CACHE
from bench.worker import time_work
from panda.data.extraction import extract_store
from panda.data.manifest import SlideRecord
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.pixel_stores import encode_png, open_pixel_store

ORDERS = ("in order", "random")
PART = "stores"


def _opencv(image: NDArray[np.uint8], options: Sequence[int]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _pillow(image: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()


WRITERS: Mapping[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "panda": encode_png,
    "imagecodecs Huffman": lambda image: bytes(imagecodecs.png_encode(image, level=1, strategy=2, filter=32)),
    "imagecodecs 1": lambda image: bytes(imagecodecs.png_encode(image, level=1)),
    "opencv 1": lambda image: _opencv(image, (cv2.IMWRITE_PNG_COMPRESSION, 1)),
    "opencv": lambda image: _opencv(image, ()),
    "pillow 1": _pillow,
}
"""Writers of PNG, with the compression level if one is given."""


def measure(record: SlideRecord, rounds: int, results: Results) -> None:
    """Cut a slide into each kind of store, read all patches of each in turn, and write them as PNG, on one thread.

    Args:
        record: The slide.
        rounds: How many times each.
        results: Gets the rows, in patches/s, with the KiB of a patch as the note.
    """
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        sets = {}
        for store in STORES:
            done = extract_store([record], settings(store), out, CACHE, workers=1, progress=False)
            patches = PatchSet(write_patch_manifests(done, {record.slide_id: "train"})["train"])
            files = [file for file in (done.store / record.slide_id).rglob("*") if file.is_file()]
            sets[store] = (patches, sum(file.stat().st_size for file in files) / 1024 / len(patches))
        for turn in range(-1, rounds):
            for order in ORDERS:
                for store, (patches, kib) in sets.items():
                    numbers = np.arange(len(patches))
                    if order == "random":
                        numbers = np.random.default_rng(0).permutation(numbers)
                    seconds, _ = time_work(partial(_read, patches, numbers.tolist()))
                    if turn >= 0:
                        rate = len(patches) / seconds
                        results.add(PART, f"panda {store}", f"read {order}", rate, f"{kib:.1f} KiB a patch")
        packed, _ = sets["packed"]
        images = [packed.pixels.read(row, packed.rows.store)[0] for row in packed.rows]
        for turn in range(-1, rounds):
            for name, write in WRITERS.items():
                seconds, size = time_work(partial(_write, write, images))
                if turn >= 0:
                    kib = size / 1024 / len(images)
                    results.add(PART, name, "write PNG", len(images) / seconds, f"{kib:.1f} KiB an image")


def _write(write: Callable[[NDArray[np.uint8]], bytes], images: Sequence[NDArray[np.uint8]]) -> int:
    """Encode images without writing them, and return their bytes."""
    return sum(len(write(image)) for image in images)


def _read(patches: PatchSet, numbers: list[int]) -> int:
    """Read patches as `PatchSet` does, without making tensors of them; slides are opened again."""
    pixels = open_pixel_store(patches.rows.settings)
    for number in numbers:
        pixels.read(patches.rows[number], patches.rows.store)
    return len(numbers)
