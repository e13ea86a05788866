"""Bags of slides whose tiles were selected, as items for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from panda.data.bagset import BagItem
from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag
from panda.progress import Progress
from panda.wsi.slide import SlideOptions

SlideTiles = tuple[SlideRecord, TileBag]


def make_items(
    bags: Sequence[SlideTiles],
    store: FeatureStore | None,
    options: SlideOptions,
    split: str,
    on_failure: Callable[[Failure], None],
) -> list[BagItem]:
    """Return the items of bags, with their features if these are stored.

    Args:
        bags: The slides with their tiles.
        store: Encodes the tiles; None if pixels are read in training.
        options: How slides are opened.
        split: Name of the split, for the progress bar and the failures.
        on_failure: Called with each slide that cannot be encoded, which has no item.
    """
    items = {bag: BagItem(record, bag.coords, bag.stain) for record, bag in bags}
    if store is None:
        return list(items.values())
    stage = f"features of {split}"
    features: dict[TileBag, Path] = {}
    with Progress(total=len(bags), stage=stage) as bar:

        def add(bag: TileBag, found: Path | Exception) -> None:
            bar.update()
            if isinstance(found, Exception):
                on_failure(record_failure(items[bag].record.slide_id, stage, found))
            else:
                features[bag] = found

        store.encode_all(list(items), options.open, add)
    return [dataclasses.replace(item, features=features[bag]) for bag, item in items.items() if bag in features]
