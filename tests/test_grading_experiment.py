"""What a grading run does with its slides, from small ones without any segmentation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from panda.app.grading import GradingExperiment
from panda.data.bags import BagItem
from panda.data.manifest import SlideRecord
from tests.panda_folder import make_folder
from tests.test_config import composed


def experiment(tmp_path: Path, *overrides: str) -> GradingExperiment:
    """One on eight slides, of small tiles."""
    make_folder(tmp_path / "data", 8)
    own = (
        "data=panda",
        f"data.root={tmp_path / 'data'}",
        f"data.store_root={tmp_path / 'patches'}",
        "data.patch_size=64",
    )
    small = (
        "task=grading",
        "tiles=tissue",
        "tiles.k=4",
        "model.encoder=resnet10t",
        "model.hidden=8",
        "engine.device=cpu",
    )
    return GradingExperiment(composed(*own, *small, *overrides))


class Trains(Exception):
    """Raised where the training would begin."""


def untrained(tmp_path: Path) -> Any:
    """A run that ends where its training would begin."""

    def fit(*_: object) -> None:
        raise Trains

    return SimpleNamespace(folder=tmp_path / "run", failures=[], notes=[], keep_splits=lambda _: None, fit=fit)


@pytest.mark.parametrize("scored", [True, False])
def test_test_slides_are_left_alone_where_they_are_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    grading = experiment(tmp_path, f"test_slides={str(scored).lower()}")
    tested = {record.slide_id for record in grading.data.splits()["test"]}
    looked_at: set[str] = set()
    bag_item = grading._bag_item

    def seen(mpps: list[float], cache: None, record: SlideRecord, bar: "tqdm[Any]") -> BagItem:
        looked_at.add(record.slide_id)
        return bag_item(mpps, cache, record, bar)

    monkeypatch.setattr(grading, "_bag_item", seen)
    with pytest.raises(Trains):
        grading.run(untrained(tmp_path))
    assert tested <= looked_at if scored else not tested & looked_at
