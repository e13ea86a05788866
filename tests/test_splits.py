"""Splits that do not leak: over random tables, with slides left out, and read back from a file."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panda.data.findings import FINDINGS, REFUSED_ROWS
from panda.data.manifest import SlideRecord, read_groups
from panda.data.settings import SelectionSettings
from panda.data.slide_selection import SPLIT_COLUMNS, Selection, select_slides
from panda.data.splits import fold_slides, split_slides
from panda.errors import ConfigError, ManifestError

PROVIDERS = ("karolinska", "radboud")


def table(count: int, seed: int, largest: int = 1) -> list[SlideRecord]:
    """Slides of both providers and all grades, in groups of up to `largest`, none of whose files are there."""
    rng = np.random.default_rng(seed)
    group_of = np.repeat(np.arange(count), rng.integers(1, largest + 1, count))[:count]
    return [
        SlideRecord(
            slide_id=f"{number:08x}",
            provider=PROVIDERS[int(rng.integers(2))],
            isup_grade=int(rng.integers(6)),
            gleason="",
            image_path=Path(f"{number}.tiff"),
            mask_path=Path(f"{number}_mask.tiff"),
            group=f"g{group_of[number]}",
        )
        for number in range(count)
    ]


def count_strata(records: list[SlideRecord]) -> int:
    return len({(record.provider, record.isup_grade) for record in records})


tables = st.builds(table, st.integers(60, 400), st.integers(0, 10**6), st.integers(1, 8))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 99), st.sampled_from([0.1, 0.15, 0.2, 0.3]), st.sampled_from([0.0, 0.1, 0.2, 0.25]))
def test_split_slides_keeps_groups_whole_and_meets_shares(
    records: list[SlideRecord], seed: int, val: float, test: float
) -> None:
    split = split_slides(records, seed=seed, val_fraction=val, test_fraction=test)
    assert split.keys() == {record.slide_id for record in records}
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        sides[record.group].add(split[record.slide_id])
    assert all(len(names) == 1 for names in sides.values())
    largest = max(Counter(record.group for record in records).values())
    slack = largest + count_strata(records) + 0.01 * len(records)
    counts = Counter(split.values())
    for name, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        assert abs(counts[name] - share * len(records)) <= slack  # type: ignore[index]
    order = np.random.default_rng(seed).permutation(len(records))
    assert split_slides([records[i] for i in order], seed=seed, val_fraction=val, test_fraction=test) == split


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 99), st.integers(3, 8))
def test_fold_slides_test_each_slide_once(records: list[SlideRecord], seed: int, folds: int) -> None:
    splits = [fold_slides(records, seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    largest = max(Counter(record.group for record in records).values())
    for name in ("test", "val"):
        times = Counter(slide_id for split in splits for slide_id, where in split.items() if where == name)
        assert times == Counter(record.slide_id for record in records)
    for fold, split in enumerate(splits):
        group_of = {record.slide_id: record.group for record in records}
        tested = {group_of[slide_id] for slide_id, where in split.items() if where == "test"}
        assert not tested & {group_of[slide_id] for slide_id, where in split.items() if where != "test"}
        members = {slide_id for slide_id, where in split.items() if where == "test"}
        assert abs(len(members) - len(records) / folds) <= largest + 1
        of = Counter((record.provider, record.isup_grade) for record in records)
        there = Counter((r.provider, r.isup_grade) for r in records if r.slide_id in members)
        if max(of.values()) >= folds:  # else the strata are coarser
            assert all(abs(there[stratum] - count / folds) <= largest + 1 for stratum, count in of.items())
        following = splits[(fold + 1) % folds]
        assert {slide_id for slide_id, where in following.items() if where == "test"} == {
            slide_id for slide_id, where in split.items() if where == "val"
        }


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(0, 20), st.sampled_from(["holdout", "kfold"]), st.data())
def test_select_slides_exclusion_moves_no_other_slide(
    records: list[SlideRecord], seed: int, how: Any, data: st.DataObject
) -> None:
    whole = select_slides(records, SelectionSettings(split=how, seed=seed))
    gone = data.draw(st.sets(st.sampled_from([record.slide_id for record in records]), max_size=len(records) // 4))
    there = [replace(record, mask_path=None) if record.slide_id in gone else record for record in records]
    there_too = {record.slide_id for record in records} - gone
    # missing_mask looks at the files: with a real one for the others it finds those that have none
    real = [record if record.mask_path is None else replace(record, mask_path=Path(__file__)) for record in there]
    part = select_slides(real, SelectionSettings(split=how, seed=seed, exclude=("missing_mask",)))
    assert part.split == {slide_id: whole.split[slide_id] for slide_id in there_too}
    assert part.exclusion_counts == ({"missing_mask": len(gone)} if gone else {})
    one = select_slides(records, SelectionSettings(split=how, seed=seed, provider="radboud"))
    assert one.split.items() <= whole.split.items()


def test_splits_are_same_on_any_machine() -> None:
    """If it fails after an update of scikit-learn or numpy, splits.csv is how to keep a test set."""
    records = table(500, 7, 4)
    for split, digest in (
        (split_slides(records, seed=3, val_fraction=0.2, test_fraction=0.2), "d5fdc739733c66c5"),
        (fold_slides(records, seed=3, folds=5, fold=2), "89799ec4d72798ec"),
    ):
        text = "".join(f"{slide_id} {name}\n" for slide_id, name in sorted(split.items()))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("how", ["holdout", "kfold"])
def test_select_slides_column_stratifies_the_split(how: Any) -> None:
    """A class of one slide in ten, which is independent of the grade, has its share of each split."""
    records = [
        replace(r, others=(("stage", "rare" if k % 10 == 0 else "common"),)) for k, r in enumerate(table(200, 7, 1))
    ]
    choice = SelectionSettings(split=how, val_fraction=0.2, test_fraction=0.2, folds=5)
    selection = select_slides(records, choice, "stage")
    rare = Counter(selection.split[record.slide_id] for record in records if record.read_cell("stage") == "rare")
    assert [abs(rare["test"] - 4) <= 1, abs(rare["val"] - 4) <= 1, abs(rare["train"] - 12) <= 1] == [True] * 3
    assert "It is stratified by provider and stage." in selection.describe_policy()
    assert select_slides(records, choice, "no such column").split.keys() == selection.split.keys()


def write_split(tmp_path: Path, **choice: Any) -> tuple[list[SlideRecord], Selection, Path]:
    records = table(120, 1, 3)
    groups = tmp_path / "groups.csv"
    groups.write_text("image_id,group\n" + "".join(f"{r.slide_id},{r.group}\n" for r in records))
    selection = select_slides(records, SelectionSettings(groups=groups, **choice))
    selection.write(tmp_path / "splits.csv")
    return records, selection, tmp_path / "splits.csv"


def test_select_slides_written_split_is_read_back(tmp_path: Path) -> None:
    records, selection, path = write_split(tmp_path, provider="karolinska")
    assert path.read_text().startswith(",".join(SPLIT_COLUMNS) + "\n")
    again = select_slides(list(reversed(records)), SelectionSettings(splits=path))
    assert again.split == selection.split
    assert again.why == selection.why
    assert {r.slide_id: r.group for r in again.records} == {r.slide_id: r.group for r in selection.records}
    assert again.groups_are == "group"
    assert f"The split comes from {path}" in again.describe_policy()
    more = [*records, replace(records[0], slide_id="new")]
    assert select_slides(more, SelectionSettings(splits=path)).why["new"] == "not_in_splits"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",val,", ",validation,", "split is 'validation': give train, val, test or left_out"),
        ("00000003,", "unknown,", "'unknown' is in no row of the table"),
        ("g0,group,", "g0,family,", "groups_are has"),
        ("why", "reason", "no column 'why'"),
    ],
)
def test_select_slides_faults_of_given_split_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    records, _, path = write_split(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ManifestError, match=words):
        select_slides(records, SelectionSettings(splits=path))


def test_select_slides_given_split_naming_slide_twice_raises(tmp_path: Path) -> None:
    records, _, path = write_split(tmp_path)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ManifestError, match="'00000000' is in 2 rows"):
        select_slides(records, SelectionSettings(splits=path))


def test_select_slides_given_split_tearing_groups_raises(tmp_path: Path) -> None:
    records, selection, path = write_split(tmp_path)
    patients = tmp_path / "patients.csv"
    one = [next(slide_id for slide_id, name in selection.split.items() if name == side) for side in ("train", "test")]
    patients.write_text(
        "image_id,patient\n" + "".join(f"{r.slide_id},{'p' if r.slide_id in one else r.slide_id}\n" for r in records)
    )
    with pytest.raises(ManifestError, match="group 'p' is in test and train"):
        select_slides(records, SelectionSettings(splits=path, groups=patients))


def test_select_slides_audit_findings_exclude_slides(tmp_path: Path, panda_log: pytest.LogCaptureFixture) -> None:
    records = table(80, 2)
    header = "slide_id,finding,severity,value,what_to_do\n"
    findings = tmp_path / "findings.csv"
    findings.write_text(
        header + "00000001,blur,note,1,look\n00000002,unopenable,error,x,y\n00000002,blur,note,1,look\n"
    )
    with panda_log.at_level("WARNING"):
        select_slides(records, SelectionSettings(exclude=("missing_grade",), findings=findings))
    said = "data.exclude=[missing_grade] names no finding of an audit; those of the file are blur (2), unopenable (1)"
    assert said in panda_log.text
    panda_log.clear()
    choice = SelectionSettings(exclude=("unopenable", "blur"), findings=findings)
    assert select_slides(records, choice).why == {"00000001": "blur", "00000002": "unopenable"}
    assert "is not used" not in panda_log.text
    findings.write_text(header)
    assert select_slides(records, choice).why == {}
    (tmp_path / "audit.csv").write_text("slide_id,group\n" + "".join(f"{r.slide_id},a\n" for r in records[1:]))
    with pytest.raises(ManifestError, match=r"the audit lacks 1 of 80 slides \('00000000'\); run it again"):
        select_slides(records, choice)
    (tmp_path / "audit.csv").write_text("slide_id,worst\n" + "".join(f"{r.slide_id},note\n" for r in records))
    with pytest.raises(ManifestError, match=r"read only the table \(audit.slides=false\)"):
        select_slides(records, choice)
    (tmp_path / "audit.csv").unlink()
    findings.write_text(header + "00000001,blurred,note,1,look\n")
    with pytest.raises(ManifestError, match="finding 'blurred' is not known"):
        select_slides(records, choice)


@pytest.mark.parametrize("how", ["holdout", "kfold"])
def test_select_slides_train_on_one_provider_test_on_other(tmp_path: Path, how: Any) -> None:
    records = table(200, 4)
    groups = tmp_path / "patients.csv"
    of = {record.slide_id: record for record in records}
    pair = [next(r.slide_id for r in records if r.provider == name) for name in PROVIDERS]
    groups.write_text("image_id,patient\n" + "".join(f"{s},{'both' if s in pair else s}\n" for s in of))
    selection = select_slides(records, SelectionSettings(split=how, test_provider="radboud", groups=groups))
    for slide_id, name in selection.split.items():
        assert (of[slide_id].provider == "radboud") == (name == "test")
    assert selection.why == {pair[1]: "group_is_trained_on"}
    assert len(selection.split) == 199
    assert {"train", "val", "test"} == set(selection.split.values())
    assert "Tested on radboud only" in selection.describe_policy()
    with pytest.raises(ManifestError, match=r"it has 0 slides, the others have 200|the others have 0;"):
        select_slides([replace(r, provider="karolinska") for r in records], SelectionSettings(test_provider="radboud"))


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        ({"split": "folds"}, "data.split=folds must be holdout, kfold or patches"),
        ({"split": "kfold", "folds": 2}, "data.folds=2 must be at least 3"),
        ({"split": "kfold", "fold": 5}, "data.fold=5 must be from 0 to 4, of data.folds=5"),
        ({"seed": -1}, "data.seed=-1 must be from 0 to"),
        ({"provider": "uppsala"}, "data.provider=uppsala must be"),
        ({"test_provider": "uppsala"}, "data.test_provider=uppsala must be"),
        ({"provider": "radboud", "test_provider": "radboud"}, "both set"),
        ({"exclude": ("blurry",)}, "data.exclude has blurry: known are"),
        ({"exclude": ("bad_id",)}, "data.exclude has bad_id: such rows are refused anyway"),
        ({"exclude": ("blur",)}, r"data.exclude has blur: give data.findings=audit/findings.csv"),
        ({"findings": Path("none.csv")}, "data.findings=none.csv is no file"),
        ({"splits": Path("none.csv")}, "data.splits=none.csv is no file"),
        ({"split": "patches", "test_provider": "radboud"}, "data.test_provider is set, but data.split=patches"),
        ({"slide_id": "a"}, "data.slide_id=a is for data.split=patches"),
    ],
)
def test_selection_settings_faults_name_key(choice: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SelectionSettings(**choice)
    (fault,) = refused.value.faults
    assert word in fault


def test_selection_settings_every_finding_can_be_excluded(tmp_path: Path) -> None:
    (tmp_path / "findings.csv").write_text("slide_id,finding\n")
    every = tuple(set(FINDINGS) - set(REFUSED_ROWS))
    assert SelectionSettings(exclude=every, findings=tmp_path / "findings.csv").exclude == every


def test_describe_policy_names_grouping(tmp_path: Path) -> None:
    records = table(90, 3)
    assert select_slides(records, SelectionSettings()).describe_policy().startswith("By slide: ")
    path = tmp_path / "groups.csv"
    for column, start in (("patient", "By patient: "), ("group", "By group: ")):
        path.write_text(f"image_id,{column}\n" + "".join(f"{r.slide_id},{r.slide_id}\n" for r in records))
        assert read_groups(path)[1] == column
        kfold = SelectionSettings(groups=path, split="kfold", fold=4)
        policy = select_slides(records, kfold).describe_policy()
        assert policy.startswith(start)
        assert policy.endswith("Fold 4 of 5 (from 0) is the test, fold 0 validation.")
