"""Part e: how fast each kind of store gives its patches back, and what a patch takes on the disk."""

from __future__ import annotations

import tempfile
from functools import partial

import numpy as np

from bench.project import STORES, settings
from bench.results import Results
from bench.slides import CACHE
from bench.worker import timed
from panda.data.manifest import SlideRecord
from panda.data.patchset import PatchSet, write_patch_manifests
from panda.data.pixels import Place, patch_pixels
from panda.data.store import extract_store

ORDERS = ("in order", "random")
PART = "stores"


def measure(record: SlideRecord, rounds: int, results: Results) -> None:
    """Cut a slide into each kind of store, then read all patches of each in turn, on one thread.

    Args:
        record: the slide.
        rounds: how many times each.
        results: gets the rows, in patches/s, with the KiB of a patch as the note.
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
                    seconds, _ = timed(partial(_read, patches, numbers.tolist()))
                    if turn >= 0:
                        rate = len(patches) / seconds
                        results.add(PART, f"panda {store}", f"read {order}", rate, f"{kib:.1f} KiB a patch")


def _read(patches: PatchSet, numbers: list[int]) -> int:
    """Read patches as `PatchSet` does, without making tensors of them; slides are opened anew."""
    pixels = patch_pixels(patches.rows.settings)
    for number in numbers:
        row = patches.rows[number]
        pixels.read(Place(row.provider, row.number, row.x, row.y, row.img, row.msk))
    return len(numbers)
