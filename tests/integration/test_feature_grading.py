"""Train a grading on feature files without slides, and grade others, by the commands of a user."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from panda.data.feature_files import FeatureFile, FeatureFormat, name_feature_file, write_feature_file
from panda.inference.predictor import restore_network
from panda.models.mil import MILNet
from panda.report.run_summary import parse_summary
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import GradingMetadata
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.feature_folders import draw_features, make_feature_folder
from tests.integration.entry_points import run_entry_point, table
from tests.pyramids import write_pyramid

TRAIN = (
    *("task=grading", "data=panda", "data.root=own", "data.num_workers=0", "tiles=features"),
    *("model.hidden=8", "model.dropout=0", "optim.lr=0.02", "trainer=cpu", "trainer.max_epochs=15", "logger=csv"),
)
pytestmark = pytest.mark.slow

CHECKPOINT = "runs/grading/first/checkpoints/best.ckpt"
OF_FEATURES = {
    "tiles": {"how": "features", "k": 12, "random_fraction": 0.0, "min_tissue": 0.0, "seed": 0},
    **{"features": {"format": "panda", "dim": 8, "encoder": "drawn"}, "resolution": None, "tile_size": None},
}
"""Metadata of a grader of drawn features, whose tiles may have any size."""
GRADE = (f"grading_checkpoint={CHECKPOINT}", "features=own/features")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished training on the drawn features of slides that do not exist."""
    home = tmp_path_factory.mktemp("home")
    make_feature_folder(home / "own")
    done = run_entry_point("train", home, *TRAIN, "tiles.features=own/features", "name=first")
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def test_train_on_features_learns_drawn_grades(home: Path) -> None:
    run = home / "runs/grading/first"
    content = json.loads((run / "summary.json").read_text())
    assert parse_summary(content)[1] == []
    assert (content["test"]["auroc"], content["test"]["accuracy"]) == (1.0, 1.0)
    assert content["tiles"]["how"] == "features"
    assert content["tiles"]["origin"]["encoder"] == "drawn"
    metadata = read_checkpoint(home / CHECKPOINT, GradingMetadata).metadata
    assert (metadata.tiles.how, metadata.resolution, metadata.tile_size) == ("features", None, None)
    assert metadata.features is not None
    assert (metadata.features.dim, metadata.features.encoder) == (8, "drawn")
    for row in table(run / "test_slides.csv"):
        left = {path.name for path in (run / "slides" / row["slide_id"]).iterdir()}
        assert left == {"attention.png", "quantification.json", "slide.html"}
    assert "features of drawn, 64 µm tiles" in (run / "report.html").read_text()


def test_infer_from_features_gives_grades_of_training(home: Path) -> None:
    done = run_entry_point("infer", home, *GRADE, "output=out")
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["slide_id"]: row for row in table(home / "out/grades.csv")}
    assert len(found) == 24
    for row in table(home / "runs/grading/first/test_slides.csv"):
        own = found[row["slide_id"]]
        assert (own["isup_predicted"], own["in_sample"]) == (row["predicted"], "")
        assert [own[f"p{k}"] for k in range(6)] == [row[f"p{k}"] for k in range(6)]
    assert sum(row["in_sample"] == "training" for row in found.values()) > 5
    assert table(home / "out/failures.csv") == []
    assert "The network was trained on" in (home / "out/report.html").read_text()
    assert (home / "out/slide00/slide.html").is_file()


@pytest.mark.parametrize("format", ["trident", "stamp", "clam", "slideflow"])
def test_infer_from_features_of_each_format_gives_same_grades(home: Path, format: FeatureFormat) -> None:
    folder = home / format
    folder.mkdir()
    for number, grade in enumerate((0, 1, 4)):
        features = draw_features(f"slide{number:02d}", grade)
        path = name_feature_file(folder, features.slide_id, format)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_feature_file(path, features, format)
    for source in ("own/features", format):
        done = run_entry_point("infer", home, GRADE[0], f"features={source}", f"output=out-{source.partition('/')[0]}")
        assert done.returncode == 0, done.stderr[-3000:]
    wanted, found = (table(home / out / "grades.csv")[:3] for out in ("out-own", f"out-{format}"))
    assert [row["slide_id"] for row in found] == ["slide00", "slide01", "slide02"]
    for row, own in zip(found, wanted, strict=True):
        shares = [(float(row[f"p{k}"]), float(own[f"p{k}"])) for k in range(6)]
        assert all(abs(share - other) < 0.01 for share, other in shares), "STAMP stores half precision"


def test_infer_from_features_shows_attention_on_slides(home: Path) -> None:
    """A slide that is there is drawn; one that is too small for the tiles of its file is not."""
    (home / "slides").mkdir()
    pixels = np.full((512, 768, 3), 230, np.uint8)
    write_pyramid(home / "slides/slide00.tiff", pixels, mpp=1.0)
    write_pyramid(home / "slides/slide01.tiff", pixels[:128, :128], mpp=1.0)
    done = run_entry_point("infer", home, *GRADE, "slides=slides", "output=shown")
    assert done.returncode == 0, done.stderr[-3000:]
    drawn, other, absent = (home / "shown" / f"slide0{number}" for number in range(3))
    assert (drawn / "attention_tiles.png").is_file()
    assert (drawn / "slide.jpg").is_file()
    assert "data-view=" in (drawn / "slide.html").read_text()
    assert "its features were computed on another slide" in (other / "slide.html").read_text()
    assert not (other / "slide.jpg").exists()
    assert (other / "attention.png").is_file()
    assert "The slide is not given" in (absent / "slide.html").read_text()
    assert "22 of 24 slides are not among slides=slides" in (home / "shown/report.html").read_text()


def draw_foreign_file(folder: Path, format: str) -> FeatureFile:
    """Write the features of slide00 as STAMP or slideflow itself does, without our attributes, and return ours."""
    features = draw_features("slide00", 0)
    assert features.coords is not None
    folder.mkdir()
    if format == "stamp":
        with h5py.File(folder / "slide00.h5", "w") as file:
            file["feats"], file["coords"] = features.features, (2.0 * features.coords).astype(np.float32)
            file.attrs.update({"extractor": "drawn", "unit": "um", "tile_size_um": 128.0, "tile_size_px": 64})
    else:
        torch.save(torch.from_numpy(features.features), folder / "slide00.pt")
        np.savez(folder / "slide00.index", arr_0=features.coords + 32)
        config = {"extractor": {"class": "drawn"}, "tile_px": 64, "tile_um": 128}
        (folder / "bags_config.json").write_text(json.dumps(config))
    return features


@pytest.mark.parametrize("format", ["stamp", "slideflow"])
def test_infer_from_foreign_features_shows_attention(home: Path, format: str) -> None:
    """STAMP states tiles in µm, and slideflow centres: both have places once the slide of 2 µm/px is open."""
    place = home / f"foreign-{format}"
    coords = draw_foreign_file(place, format).coords
    trained = read_checkpoint(home / CHECKPOINT, GradingMetadata)
    checkpoint = grading_checkpoint(place / "g.ckpt", restore_network(MILNet, trained), **OF_FEATURES)
    (place / "slides").mkdir()
    write_pyramid(place / "slides/slide00.tiff", np.full((512, 768, 3), 230, np.uint8), mpp=2.0)
    given = (f"grading_checkpoint={checkpoint}", f"features={place}", f"slides={place}/slides", f"output={place}/out")
    done = run_entry_point("infer", home, *given)
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = place / "out/slide00"
    assert (drawn / "attention_tiles.png").is_file()
    grade = json.loads((drawn / "quantification.json").read_text())["grade"]
    np.testing.assert_array_equal([[tile["x"], tile["y"]] for tile in grade["tiles"]], coords)
    assert grade["tile_side_px"] == 64
    done = run_entry_point("infer", home, *given[:2], f"output={place}/blind")
    assert done.returncode == 0, done.stderr[-3000:]
    page = (place / "blind/slide00/slide.html").read_text()
    assert "so no attention is drawn without a slide of known µm/px" in page


def test_infer_from_features_bad_file_fails_its_slide(home: Path) -> None:
    folder = make_feature_folder(home / "mixed", 2)
    write_feature_file(folder / "other.h5", draw_features("other", 0, encoder="uni", weights=None))
    write_feature_file(folder / "unknown.h5", draw_features("unknown", 4, encoder=None, weights=None))
    (folder / "slide01.h5").write_bytes(b"no features")
    wide = draw_features("wide", 4)
    assert wide.coords is not None
    coords = np.where(wide.coords == 64, -70, 2**30 * wide.coords)
    write_feature_file(folder / "wide.h5", dataclasses.replace(wide, coords=np.minimum(coords, 2**30)))
    done = run_entry_point("infer", home, GRADE[0], "features=mixed/features", "output=mixed/out")
    assert done.returncode == 1
    assert "2 of 5 slides failed" in done.stderr
    failed = {row["slide_id"]: row["message"] for row in table(home / "mixed/out/failures.csv")}
    assert "the grader learned from other features: encoder is drawn, but uni" in failed["other"]
    assert "slide01.h5" in failed["slide01"]
    assert {row["slide_id"]: row["isup_predicted"] for row in table(home / "mixed/out/grades.csv")} == {
        "slide00": "0",
        "unknown": "4",
        "wide": "4",
    }
    assert "1 of 3 feature files do not state which encoder" in (home / "mixed/out/report.html").read_text()


def test_infer_refuses_what_features_do_not_fit(home: Path) -> None:
    """Nothing is written if no file fits, keys of maps are typed, or the grader is of the other kind."""
    make_feature_folder(home / "wide", 2, dim=9)
    done = run_entry_point("infer", home, GRADE[0], "features=wide/features", "output=none", "threshold=0.5")
    assert "none of 2 files fits the features" in done.stderr
    assert "dim is 8, but 9" in done.stderr
    assert "threshold=0.5 is not used with features=…" in done.stderr
    of_slides = grading_checkpoint(home / "slides.ckpt")
    done = run_entry_point("infer", home, f"grading_checkpoint={of_slides}", GRADE[1], "output=none")
    assert "grades slides by their pixels: give checkpoint=… and slides=…" in done.stderr
    done = run_entry_point("infer", home, *GRADE, "output=own/features")
    assert "output=own/features is the folder of the features: give a folder of its own" in done.stderr
    assert not (home / "own/features/failures.csv").exists()
    mapped = f"checkpoint={segmentation_checkpoint(home / 'maps.ckpt')}"
    write_pyramid(home / "one.tiff", np.full((64, 64, 3), 230, np.uint8), mpp=1.0)
    done = run_entry_point("infer", home, GRADE[0], mapped, "slides=one.tiff", "output=none")
    assert "grades files of features of drawn" in done.stderr
    assert "give features=… with the folder of the feature files" in done.stderr
    done = run_entry_point("infer", home, *GRADE, mapped, "output=none")
    assert "is not used with features=…, from which slides are graded without a map" in done.stderr
    assert not (home / "none").exists()


def test_train_on_features_slide_without_file_is_failure(home: Path) -> None:
    folder = make_feature_folder(home / "gap")
    (folder / "slide00.h5").unlink()
    done = run_entry_point("train", home, *TRAIN, "data.root=gap", "tiles.features=gap/features", "name=gap")
    assert done.returncode == 1
    (failed,) = table(home / "runs/grading/gap/failures.csv")
    assert failed["slide_id"] == "slide00"
    assert "there is no feature file of slide slide00" in failed["message"]


def test_train_on_features_table_needs_no_path(home: Path) -> None:
    rows = (home / "own/train.csv").read_text().splitlines()
    lines = ["image_id,grade", *(",".join(row.split(",")[::2][:2]) for row in rows[1:])]
    (home / "mine.csv").write_text("\n".join(lines) + "\n")
    own = ("data=table", "data.table=mine.csv", "data.labels=binary")
    begun = (*TRAIN[:1], *TRAIN[3:], *own, "tiles.features=own/features", "trainer.max_epochs=1", "name=mine")
    done = run_entry_point("train", home, *begun)
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "mine.csv").write_text(
        "\n".join(f"{line},{'provider' if line == lines[0] else 'hospital A'}" for line in lines) + "\n"
    )
    done = run_entry_point("train", home, *begun, "data.labels=null", "name=hospital")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "hospital A" in (home / "runs/grading/hospital/report.html").read_text()
    resume = ("resume=runs/grading/hospital/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert run_entry_point("train", home, *resume).returncode == 0
    done = run_entry_point("train", home, *resume, "task.kind=regression")
    said = (
        "task.kind=regression: there is no such key; a resumed run keeps its choices, what can be changed is trainer."
    )
    assert said in done.stderr
    (home / "mine.csv").write_text("\n".join(lines) + "\n")
    done = run_entry_point("train", home, *begun, "tiles=tissue", "tiles.features=null", "name=no")
    assert "no column 'path': give the file of each slide" in done.stderr


def test_train_on_features_refuses_idle_keys_and_mixed_files(home: Path) -> None:
    folder = make_feature_folder(home / "two")
    write_feature_file(folder / "slide03.h5", draw_features("slide03", 0, encoder="uni"))
    idle = ("model.encoder=resnet50", "tiles.tile_size=128", "engine.precision=fp32")
    done = run_entry_point("train", home, *TRAIN, "data.root=two", "tiles.features=two/features", *idle, "name=no")
    assert f"{', '.join(idle)} are not used with tiles=features" in done.stderr
    assert "slide03.h5 were not made alike: encoder is drawn, but uni" in done.stderr
    done = run_entry_point("train", home, *TRAIN, "tiles=tissue", "tiles.features=own/features", "name=no")
    assert "tiles.features=own/features is not used with tiles=tissue" in done.stderr
    done = run_entry_point("train", home, *TRAIN, "name=no")
    assert "tiles.features is not given" in done.stderr
    assert not (home / "runs/grading/no").exists()


def test_train_on_features_resumes_only_with_same_files(home: Path) -> None:
    begun = ("tiles.features=again/features", "data.root=again", "name=again", "trainer.max_epochs=2")
    folder = make_feature_folder(home / "again")
    assert run_entry_point("train", home, *TRAIN, *begun).returncode == 0
    resume = ("resume=runs/grading/again/checkpoints/last.ckpt", "trainer.max_epochs=3")
    assert run_entry_point("train", home, *resume).returncode == 0
    train = next(row for row in table(home / "runs/grading/again/splits.csv") if row["split"] == "train")
    os.utime(folder / f"{train['slide_id']}.h5", ns=(1, 1))
    done = run_entry_point("train", home, *resume[:1], "trainer.max_epochs=4")
    assert f"slide {train['slide_id']}: its file was" in done.stderr


def test_sweep_over_feature_folders_names_them(home: Path) -> None:
    """Folders of other encoders are compared; a job that differs only in its evaluation reuses a training."""
    make_feature_folder(home / "uni", encoder="uni", dim=10)
    sweep = ("-m", *TRAIN, "tiles.features=own/features,uni/features", "test_slides=true,false", "name=s")
    done = run_entry_point("train", home, *sweep, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = home / "runs/grading/sweep-s"
    assert "uni/features" in (folder / "sweep.html").read_text()
    found = [json.loads((folder / str(job) / "summary.json").read_text()) for job in range(4)]
    assert [one["tiles"]["origin"]["encoder"] for one in found] == ["drawn", "drawn", "uni", "uni"]
    assert [one["trained_by"] is None for one in found] == [True, False, True, False]


def test_patients_of_features_are_graded_together(home: Path) -> None:
    """Slides 0 and 3 have the same grade and are one patient, and so on."""
    patients = [f"slide{number:02d},p{number % 3}{number // 6}" for number in range(24)]
    (home / "patients.csv").write_text("\n".join(["image_id,patient", *patients]) + "\n")
    given = ("data.groups=patients.csv", "task.bag=patient", "tiles.k=5", "name=patients")
    done = run_entry_point("train", home, *TRAIN, "tiles.features=own/features", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    run = home / "runs/grading/patients"
    rows = table(run / "patients.csv")
    tested = {row["slide_id"]: row for row in table(run / "test_slides.csv")}
    assert {row["patient"] for row in rows} == tested.keys()
    for patient in tested:
        own = [row for row in rows if row["patient"] == patient]
        assert [row["tiles"] for row in own] == ["3", "2"]
        assert sum(float(row["attention"]) for row in own) == pytest.approx(1, abs=1e-5)
        for row in own:
            grade = json.loads((run / "slides" / row["slide_id"] / "quantification.json").read_text())["grade"]
            assert grade["probabilities"] == [float(tested[patient][f"p{k}"]) for k in range(6)]
    assert "Slides of the patients" in (run / "report.html").read_text()
    grader = "grading_checkpoint=runs/grading/patients/checkpoints/best.ckpt"
    alone = (grader, "features=own/features", "output=alone")
    done = run_entry_point("infer", home, *alone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained on bags of all slides of a patient" in (home / "alone/report.html").read_text()
    done = run_entry_point("infer", home, *alone[:2], "patients=patients.csv", "output=together")
    assert done.returncode == 0, done.stderr[-3000:]
    found = table(home / "together/grades.csv")
    assert len(found) == 24
    for row in found:
        if row["patient"] in tested:
            assert [row[f"p{k}"] for k in range(6)] == [tested[row["patient"]][f"p{k}"] for k in range(6)]
    page = (home / "together/report.html").read_text()
    assert "stands at each of these slides" in page
    assert "trained on bags of all slides" not in page


def test_infer_patients_incomplete_or_unknown_are_named(home: Path) -> None:
    folder = make_feature_folder(home / "few", 4)
    (folder / "slide03.h5").write_bytes(b"damaged")
    network = restore_network(MILNet, read_checkpoint(home / CHECKPOINT, GradingMetadata))
    grader = f"grading_checkpoint={grading_checkpoint(home / 'p.ckpt', network, **OF_FEATURES, bag='patient')}"
    given = (grader, "features=few/features", "patients=few.csv", "output=few/out")
    rows = ["image_id,patient", "slide00,p", "slide03,p", "slide01,q", "slide02,r", "slide09,r"]
    (home / "few.csv").write_text("\n".join(rows) + "\n")
    done = run_entry_point("infer", home, *given)
    assert "2 of 4 slides failed" in done.stderr
    failed = {row["slide_id"]: row["message"] for row in table(home / "few/out/failures.csv")}
    assert failed["slide00"] == "slide slide03 of patient p cannot be used, so the patient is left out"
    assert failed.keys() == {"slide00", "slide03"}
    assert [(row["slide_id"], row["patient"]) for row in table(home / "few/out/grades.csv")] == [
        ("slide01", "q"),
        ("slide02", "r"),
    ]
    assert "1 of 3 patients have more slides in few.csv than files" in (home / "few/out/report.html").read_text()
    (home / "few.csv").write_text("\n".join(rows[:4]) + "\n")
    done = run_entry_point("infer", home, GRADE[0], *given[1:3], "output=none")
    assert "patients=few.csv: the grader was trained on bags of one slide (task.bag=slide): remove it" in done.stderr
    assert "1 of 4 slides are not in the table of groups" in done.stderr
    assert not (home / "none").exists()
