"""The record of what a training learns from names every change, and reads nothing but tables and file times."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from panda.app import learning_record
from panda.app.learning_record import FILE, LearningRecord
from panda.data.manifest import read_manifest
from panda.data.settings import SelectionSettings
from panda.data.slide_selection import Selection, select_slides
from panda.errors import CheckpointError, PandaError
from panda.wsi.label_maps import find_label_map
from tests.panda_folder import HEADER, make_folder, slide_name
from tests.test_config_check import compose_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_folder(tmp_path / "data", 6)
    return tmp_path / "data"


def select(root: Path) -> Selection:
    return select_slides(read_manifest(root), SelectionSettings(test_fraction=0.2))


def read_record(root: Path, *overrides: str, segmentation: tuple[str, ...] = ()) -> LearningRecord:
    return LearningRecord.read_today(compose_config(*overrides), select(root), segmentation)


def find_learned(root: Path) -> str:
    """Return a training slide."""
    return next(slide_id for slide_id, split in sorted(select(root).split.items()) if split == "train")


def edit_row(root: Path, slide_id: str, column: int, value: str) -> None:
    table = root / "train.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    for row in rows:
        if row[0] == slide_id:
            row[column] = value
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")


def test_record_unchanged_data_read_back_has_no_changes(root: Path, tmp_path: Path) -> None:
    before = read_record(root)
    before.write(tmp_path)
    stored = LearningRecord.read(tmp_path)
    assert stored == before
    assert stored.find_changes(read_record(root)) == []
    text = (tmp_path / FILE).read_text()
    assert '"loss.bce_weight"' in text or '"loss._target_"' in text


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [(2, "5", "isup_grade was {grade} and is 5"), (1, "binary", "data_provider was {provider} and is binary")],
)
def test_record_changed_row_names_slide_and_column(root: Path, column: int, value: str, named: str) -> None:
    slide_id, before = find_learned(root), read_record(root)
    record = next(record for record in read_manifest(root) if record.slide_id == slide_id)
    edit_row(root, slide_id, column, value)
    today = LearningRecord.read_today(compose_config(), _keep_split(root, before), ())
    expected = named.format(grade=record.isup_grade, provider=record.provider)
    assert before.find_changes(today) == [f"slide {slide_id}: {expected}"]


def _keep_split(root: Path, before: LearningRecord) -> Selection:
    """Select today's rows with the split of before."""
    selection = select(root)
    split = {slide_id: slide.split for slide_id, slide in before.slides.items()}
    return Selection(selection.settings, selection.records, split, {}, selection.groups_are)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["file", "mask"])
def test_record_replaced_file_is_named_with_both_times(root: Path, kind: str) -> None:
    slide_id, before = find_learned(root), read_record(root)
    record = next(record for record in read_manifest(root) if record.slide_id == slide_id)
    path = record.image_path if kind == "file" else record.mask_path
    assert path is not None
    os.utime(path, ns=(0, 0))
    (change,) = before.find_changes(read_record(root))
    assert change.startswith(f"slide {slide_id}: its {kind} was {path.stat().st_size} bytes of 20")
    assert change.endswith(f"and is {path.stat().st_size} bytes of 1970-01-01 00:00:00.000+00:00")
    path.unlink()
    (change,) = before.find_changes(read_record(root))
    assert change.endswith("and is missing")


def test_record_test_slide_file_is_not_learned_from(root: Path) -> None:
    before = read_record(root)
    tested = next(slide_id for slide_id, slide in before.slides.items() if slide.split == "test")
    os.utime(root / "train_images" / f"{tested}.tiff", ns=(0, 0))
    assert before.find_changes(read_record(root)) == []


def test_record_new_and_lost_rows_are_named(root: Path) -> None:
    before = read_record(root)
    slide_id = slide_name(5)
    table = root / "train.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith(slide_id)) + "\n")
    assert f"slide {slide_id}: is no longer in the table" in before.find_changes(read_record(root))
    assert f"slide {slide_id}: is new in the table" in read_record(root).find_changes(before)
    assert HEADER in table.read_text()


def test_record_edited_config_names_key_and_values(root: Path) -> None:
    before = read_record(root)
    assert before.find_changes(read_record(root, "optim.lr=0.5")) == ["config.yaml: optim.lr was 0.001 and is 0.5"]
    assert before.find_changes(read_record(root, "trainer.max_epochs=99", "data.num_workers=0")) == []
    grading = read_record(root, "task=grading")
    assert [
        change.split()[1] for change in grading.find_changes(read_record(root, "task=grading", "engine.tta=d4"))
    ] == ["engine.tta"]
    assert before.find_changes(read_record(root, "engine.tta=d4")) == []


def test_record_config_read_from_yaml_is_unchanged(root: Path) -> None:
    cfg = compose_config("optim.weight_decay=0.00001", "logger.tags=[a,1]", "data.exclude=[missing_mask]")
    again = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    assert isinstance(again, DictConfig)
    selection = select(root)
    first = LearningRecord.read_today(cfg, selection, ())
    assert first.find_changes(LearningRecord.read_today(again, selection, ())) == []


def test_record_label_map_and_segmentation_changes_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_record(root, segmentation=("a" * 64,))
    other = find_label_map("radboud").model_copy(update={"cancer": (4, 5)})
    monkeypatch.setattr(
        learning_record, "find_label_map", lambda name: other if name == "radboud" else find_label_map(name)
    )
    changes = before.find_changes(read_record(root, segmentation=("b" * 64,)))
    assert changes[0] == "segmentation_checkpoint: its weights had the fingerprint aaaaaaaaaaaa and have bbbbbbbbbbbb"
    assert changes[1] == "label map of radboud: cancer was [3, 4, 5] and is [4, 5]"


def test_record_check_lists_first_changes_and_remedy(root: Path) -> None:
    before = read_record(root)
    for slide_id in before.slides:
        edit_row(root, slide_id, 2, "1")
    with pytest.raises(CheckpointError) as caught:
        before.check(LearningRecord.read_today(compose_config(), _keep_split(root, before), ()), Path("last.ckpt"))
    text = str(caught.value)
    assert text.count("isup_grade was") == 5
    assert "and 1 more" in text
    assert "start a new run" in text


@pytest.mark.parametrize("content", [None, "{", '{"format": 2}'])
def test_record_absent_or_damaged_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(PandaError, match=r"learns_from\.json.*start a new run"):
        LearningRecord.read(tmp_path)


def test_record_of_many_slides_takes_seconds(tmp_path: Path) -> None:
    """The bound is loose; `docs/design.md` has the measured time."""
    lines = [HEADER]
    for folder in ("train_images", "train_label_masks"):
        (tmp_path / folder).mkdir()
    for number in range(2000):
        name = slide_name(number)
        (tmp_path / "train_images" / f"{name}.tiff").touch()
        (tmp_path / "train_label_masks" / f"{name}_mask.tiff").touch()
        lines.append(f"{name},radboud,{number % 6},0+0")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    selection = select(tmp_path)
    started = time.process_time()
    LearningRecord.read_today(compose_config(), selection, ()).write(tmp_path)
    assert LearningRecord.read(tmp_path).find_changes(LearningRecord.read_today(compose_config(), selection, ())) == []
    assert time.process_time() - started < 5
