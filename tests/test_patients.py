"""Bags of patients: their labels, their tiles, and grades of patients on the pages of slides."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda.app.grading import GradingExperiment
from panda.app.split_grading import grade_split
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.feature_files import FeatureFile, FeatureOrigin, write_feature_file
from panda.data.manifest import SlideRecord
from panda.data.patients import check_patients, divide_tiles, name_bag
from panda.data.targets import CANCER, ISUP, TargetSpec
from panda.errors import ConfigError, ManifestError
from panda.inference.grader import GradingPredictor
from panda.models.mil import MILNet
from panda.report.patient_table import lay_out_patients
from panda.report.slide_page import write_slide_page
from panda.tables import read_output_table
from panda.wsi.slide import Slide, SlideOptions
from tests.checkpoints import grading_checkpoint
from tests.panda_folder import slide_name
from tests.test_grading_experiment import Trains, make_experiment, make_run_without_training

TILES = {"how": "tissue", "k": 5, "random_fraction": 1.0, "min_tissue": 0.25, "seed": 0}


def make_record(slide: str, patient: str | None, grade: int = 3, **columns: str) -> SlideRecord:
    return SlideRecord(slide, "radboud", grade, "", Path("s"), None, patient or slide, patient, tuple(columns.items()))


def make_patients(tmp_path: Path, *overrides: str) -> GradingExperiment:
    """Make an experiment on four patients, with slides 0 and 1, 2 and 3, and so on."""
    groups = tmp_path / "patients.csv"
    rows = [f"{slide_name(number)},p{number // 2}" for number in range(8)]
    groups.write_text("\n".join(["image_id,patient", *rows]))
    given = (
        f"data.groups={groups}",
        "task.bag=patient",
        "tiles.k=5",
        "data.val_fraction=0.25",
        "data.test_fraction=0.25",
    )
    return make_experiment(tmp_path, *given, *overrides)


@given(st.integers(1, 500), st.integers(1, 40))
def test_divide_tiles_uses_all_in_equal_parts(k: int, slides: int) -> None:
    parts = divide_tiles(k, slides)
    assert (len(parts), sum(parts)) == (slides, k)
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


def test_check_patients_unknown_or_too_many_slides_raise() -> None:
    records = [make_record(name, "p") for name in "abc"]
    with pytest.raises(ManifestError, match="patients of the slides are unknown; give the table a column patient"):
        check_patients(records, "group", ISUP, "same", 5)
    with pytest.raises(ManifestError, match=r"tiles.k=2: patient 'p' has 3 slides.*tiles.k=3 or more"):
        check_patients(records, "patient", ISUP, "same", 2)
    check_patients(records, "patient", ISUP, "same", 3)
    assert [name_bag(make_record("a", patient), "patient") for patient in ("p", None)] == ["p", "a"]


def test_check_patients_different_labels_are_named() -> None:
    records = [make_record("a", "p", 1), make_record("b", "p", 4), make_record("c", "q", 0)]
    remedy = (
        r"1 patient has slides with different labels; .*task.patient_label=highest.*\n  - p \(a: ISUP 1, b: ISUP 4\)"
    )
    with pytest.raises(ManifestError, match=remedy):
        check_patients(records, "patient", ISUP, "same", 9)
    check_patients(records, "patient", CANCER, "same", 9)
    check_patients(records, "patient", ISUP, "highest", 9)
    ages = [make_record("a", "p", age="60"), make_record("b", "p", age="61")]
    with pytest.raises(ManifestError, match=r"correct the table:\n  - p \(a: 60, b: 61\)"):
        check_patients(ages, "patient", TargetSpec(name="age", kind="regression", columns=("age",)), "same", 9)


def test_bagset_of_patient_joins_parts_of_its_slides(tmp_path: Path) -> None:
    items, features = [], {}
    for name, patient, count in (("b", "p", 4), ("c", "q", 9), ("a", "p", 1)):
        features[name] = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        path = tmp_path / f"{name}.h5"
        coords = np.zeros((count, 2), np.int64)
        write_feature_file(path, FeatureFile(name, features[name], coords, FeatureOrigin(format="panda", dim=3)))
        items.append(BagItem(make_record(name, patient, count % 5), coords, features=path))
    bags = BagSet(items, BagSettings(k=5, bag="patient"))
    assert len(bags) == 2
    bag, mask, label, name = bags[0]
    assert (name, int(label)) == ("p", 4)  # the highest grade of its slides
    assert bag.shape == (5, 3)
    expected = np.concatenate([features["a"], features["b"][:2]])  # three tiles of a at most, and two of b
    assert np.array_equal(bag[mask].numpy(), expected)
    assert np.array_equal(bags[1][0].numpy(), features["c"][:5])
    alone = BagSet(items, BagSettings(k=5))
    assert [len(alone), alone[2][3]] == [3, "a"]


def test_patient_pixels_are_those_of_its_slides(tmp_path: Path) -> None:
    grading = make_patients(tmp_path)
    grading.prepare()
    items = grading._items["train"]
    assert [len(item.coords) for item in items] == [3, 2, 3, 2]  # five tiles a patient
    settings = {"tile_size": 64, "level": 1, "mpp": None, "k": 5}
    joined, alone = (BagSet(items, BagSettings(bag=unit, **settings)) for unit in ("patient", "slide"))  # type: ignore[arg-type]
    assert len(joined) == 2
    for number in range(2):
        bag, mask, _, name = joined[number]
        assert name == name_bag(items[2 * number].record, "patient")
        parts = [alone[2 * number + side] for side in range(2)]
        assert torch.equal(bag[mask], torch.cat([tiles[own] for tiles, own, *_ in parts]))


def test_prepare_keeps_patients_whole(tmp_path: Path) -> None:
    grading = make_patients(tmp_path, "model.freeze_encoder=true")
    lost = grading.data.list_splits()["train"][0]
    lost.image_path.write_bytes(b"II*\0")
    metadata = grading.prepare()
    assert metadata.bag == "patient"
    patients = [{name_bag(item.record, "patient") for item in items} for items in grading._items.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 3
    other = next(r for r in grading.data.list_splits()["train"][1:] if r.group == lost.group)
    messages = {failure.slide_id: failure.message for failure in grading.failures}
    assert messages.keys() == {lost.slide_id, other.slide_id}
    assert (
        messages[other.slide_id]
        == f"slide {lost.slide_id} of patient {lost.group} cannot be used, so the patient is left out"
    )


def test_grade_patient_is_on_pages_of_its_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grading, run = make_patients(tmp_path), make_run_without_training(tmp_path)
    with pytest.raises(Trains):
        grading.run(run)
    assert any("task.bag=patient" in note for note in run.notes)
    network = MILNet("resnet10t", hidden=8)
    checkpoint = grading_checkpoint(tmp_path / "b.ckpt", network, tiles=TILES, bag="patient")
    grader = GradingPredictor.from_checkpoint(checkpoint, grading.engine)
    bags, grade_features = [], grader.grade_features

    def keep(features: Any, **rest: Any) -> Any:
        bags.append(features)
        return grade_features(features, **rest)

    opened: list[str | None] = []
    open_slide = SlideOptions.open

    def count(options: SlideOptions, path: Path, slide_id: str | None = None) -> Slide:
        opened.append(slide_id)
        return open_slide(options, path, slide_id)

    monkeypatch.setattr(grader, "grade_features", keep)
    monkeypatch.setattr(SlideOptions, "open", count)
    (found,) = grade_split(run, grading.cfg, grader, grading._items["test"], "test")
    assert [len(bag) for bag in bags] == [5]  # graded once, not for each slide
    assert sorted(map(str, opened)) == sorted(item.record.slide_id for item in grading._items["test"])
    with torch.inference_mode():
        logits, weights = grader.network.aggregate(torch.from_numpy(bags[0]))
    assert found.grade.probabilities == pytest.approx(logits.double().softmax(-1).tolist())
    assert found.record.slide_id == found.grade.patient == found.record.group
    grading._write_slides(run, {"test": [found]})
    (row,) = read_output_table(run.folder / "test_slides.csv")
    assert row["slide_id"] == found.record.group
    rows = read_output_table(run.folder / "patients.csv")
    assert [(row["patient"], row["tiles"]) for row in rows] == [(found.record.group, "3"), (found.record.group, "2")]
    assert [float(row["attention"]) for row in rows] == pytest.approx(
        [weights[:3].sum().item(), weights[3:].sum().item()]
    )
    for row in rows:
        folder = run.folder / "slides" / row["slide_id"]
        grade = json.loads((folder / "quantification.json").read_text())["grade"]
        assert (grade["patient"], len(grade["tiles"])) == (found.record.group, int(row["tiles"]))
        assert grade["probabilities"] == pytest.approx(found.grade.probabilities)
        said = f"The grade is that of patient {found.record.group}, from the tiles of all slides, and"
        assert said in html.unescape(write_slide_page(folder).read_text())
    assert len(lay_out_patients(run.folder, "slides").rows) == 2


def test_grading_keys_without_meaning_raise(tmp_path: Path) -> None:
    number = ("task.target=isup_grade", "task.kind=regression", "loss=huber")
    with pytest.raises(ConfigError) as refused:
        make_patients(tmp_path, *number, "task.abstain_risk=0.1", "task.patient_label=highest")
    for said in ("task.abstain_risk=0.1 needs classes", "task.patient_label=highest needs ordered classes"):
        assert said in str(refused.value)
    with pytest.raises(ConfigError, match="the patients of the slides are unknown"):
        make_experiment(tmp_path / "b", "task.bag=patient")


def test_grade_patient_unreadable_slide_leaves_patient_out(tmp_path: Path) -> None:
    grading, run = make_patients(tmp_path, "model.freeze_encoder=true"), make_run_without_training(tmp_path)
    grading.prepare()
    first, second = (item.record for item in grading._items["test"])
    first.image_path.write_bytes(b"II*\0")
    checkpoint = grading_checkpoint(tmp_path / "b.ckpt", MILNet("resnet10t", hidden=8), tiles=TILES, bag="patient")
    grader = GradingPredictor.from_checkpoint(checkpoint, grading.engine)
    assert grade_split(run, grading.cfg, grader, grading._items["test"], "test") == []
    failed = {failure.slide_id: failure.message for failure in run.failures}
    said = f"slide {first.slide_id} of patient {first.group} cannot be used, so the patient is left out"
    assert failed[second.slide_id] == said
    assert failed.keys() == {first.slide_id, second.slide_id}
