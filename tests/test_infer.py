"""One output folder of inference after runs over different slides, settings and failures."""

import contextlib
import csv
import html
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from panda.app.entry_point import SomeSlidesFailed
from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.app.inference_tables import InferenceTables, collect_maps
from panda.data.kept_tables import KEPT_TABLES
from panda.data.shard import Shard
from panda.errors import ConfigError, ExhaustedError, LockedError, PandaError
from panda.files import hold_lock, write_json
from panda.inference import slide_files, slide_result
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.compute import EngineSettings
from panda.inference.error_regions import SlideErrors
from panda.inference.ome_tiff import write_ome_tiff
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_images import write_heatmap
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_result import SlideResult
from panda.report.compare import compare
from panda.report.error_gallery import lay_out_errors
from panda.report.headline import format_headline
from panda.report.run_summary import EvaluationSummary, parse_summary
from panda.tables import read_output_table, write_table
from panda.wsi.label_maps import LabelMap
from panda.wsi.slide import Slide
from panda.wsi.tissue import RULES, find_tissue
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.pyramids import write_pyramid
from tests.summaries import fill_summary

CONF = Path(__file__).resolve().parents[1] / "conf"
Infer = Callable[..., list[SlideResult]]


def draw(path: Path) -> Path:
    image = np.full((512, 640, 3), 244, np.uint8)
    image[100:400, 100:500] = (215, 120, 180)
    return write_pyramid(path, image, mpp=0.5)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        draw(tmp_path / "slides" / f"{name}.tiff")
    return tmp_path / "slides"


@pytest.fixture
def run(tmp_path: Path, slides: Path) -> Infer:
    checkpoint = segmentation_checkpoint(tmp_path / "best.ckpt")

    def call(given: str, *overrides: str) -> list[SlideResult]:
        register_resolvers()
        common = (f"checkpoint={checkpoint}", f"output={tmp_path / 'out'}", f"run_dir={tmp_path / 'out'}")
        engine = ("engine.device=cpu", "engine.post_workers=0")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("infer", overrides=[*common, f"slides='{slides / given}'", *engine, *overrides])
        infer(cfg)
        rows = read_output_table(Path(cfg.run_dir) / "quantification.csv")
        return [SlideResult.read(Path(cfg.run_dir) / row["slide_id"]) for row in rows]

    return call


@pytest.fixture
def list_warnings(panda_log: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that lists the logged messages, each once."""
    return lambda: list({id(record): record.getMessage() for record in panda_log.records}.values())


def read_column(path: Path, name: str) -> list[str]:
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def read_notes(out: Path) -> list[str]:
    found: list[str] = json.loads((out / "inference.json").read_text())["notes"]
    return found


def test_infer_tables_cover_slides_of_same_provenance(tmp_path: Path, run: Infer) -> None:
    out = tmp_path / "out"
    run("a.tiff")
    run("b.tiff")
    run("b.tiff")
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "b"]
    assert "slide.html" in {path.name for path in (out / "a").iterdir()}
    assert not read_notes(out)
    # the same weights elsewhere are the same making, another threshold is not
    run("c.tiff", "threshold=0.9")
    assert read_column(out / "quantification.csv", "slide_id") == ["c"]
    [kept] = (out / KEPT_TABLES).iterdir()
    assert read_column(kept, "slide_id") == ["a", "b"]
    (note,) = read_notes(out)
    assert note.startswith("2 slides ")
    assert "a, b" in note
    assert "a, b" in (out / "report.html").read_text()
    run("[ab].tiff", "threshold=0.9")
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "b", "c"]
    assert set(read_column(out / "quantification.csv", "threshold")) == {"0.9"}
    assert not read_notes(out)
    run("a.tiff", "threshold=0.001", "quantify.min_region_um2=5", "geojson=pieces")
    features = json.loads((out / "a" / "regions.geojson").read_text())["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon"}
    assert all("Region" in feature["properties"]["measurements"] for feature in features)
    assert read_column(out / "quantification.csv", "slide_id") == ["a"]
    assert {tuple(read_column(path, "slide_id")) for path in (out / KEPT_TABLES).iterdir()} == {
        ("a", "b"),
        ("a", "b", "c"),
    }


def test_infer_finished_slides_are_not_opened(
    tmp_path: Path, slides: Path, run: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened = tmp_path / "out", []
    open_slide = SlideMapper.open

    def note(mapper: SlideMapper, path: Path) -> Slide:
        opened.append(path.stem)
        return open_slide(mapper, path)

    def list_opened(*overrides: str) -> list[str]:
        opened.clear()
        run("[abc].tiff", *overrides)
        return sorted(set(opened))  # a trial of the precision opens a slide too

    monkeypatch.setattr(SlideMapper, "open", note)
    assert list_opened() == ["a", "b", "c"]
    table = (out / "quantification.csv").read_bytes()
    assert list_opened() == []
    assert (out / "quantification.csv").read_bytes() == table
    # a slide, a result or a picture that changed
    draw(slides / "a.tiff")
    (out / "b" / "overlay.png").unlink()
    result = out / "c" / "quantification.json"
    result.write_bytes(result.read_bytes().replace(b'"tumor_px": ', b'"tumor_px":  '))
    assert list_opened() == ["a", "b", "c"]
    assert list_opened() == []
    # other colours, and masks that were not there before
    assert list_opened("colour_map=viridis") == ["a", "b", "c"]
    codes = np.full((512, 640, 3), (2, 0, 0), np.uint8)
    tifffile.imwrite(tmp_path / "b.tiff", codes, tile=(256, 256), photometric="rgb", compression="deflate")
    (tmp_path / "labels.csv").write_text(f"path,mask,provider\n{slides / 'b.tiff'},{tmp_path / 'b.tiff'},karolinska\n")
    assert list_opened("colour_map=viridis", f"labels={tmp_path / 'labels.csv'}") == ["b"]
    # a folder of an older version is read once for its tables, and its slides are mapped again
    shutil.rmtree(out / ".records")
    run("a.tiff", "colour_map=viridis")
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "b", "c"]
    monkeypatch.setattr(SlideResult, "read", lambda _: pytest.fail("it is in the records"))
    infer_tables = InferenceTables(out, json.loads(result.read_bytes())["made_with"]["fingerprint"])
    infer_tables.write()
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "b", "c"]


def test_infer_shards_write_the_same_results_as_one_run(
    tmp_path: Path, slides: Path, run: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    (slides / "d.tiff").write_bytes(b"II*\0")
    assert [name for name in "abcd" if Shard(2, 2).holds(name)] == ["d"]
    with pytest.raises(SomeSlidesFailed, match="1 of 1 slides failed"):
        run("*.tiff", "shard=2/2")
    assert not (out / "report.html").exists()
    with pytest.raises(SomeSlidesFailed, match=r"1 slides failed: .*; 3 slides have no result yet \(a, b, c\)"):
        collect_maps(OmegaConf.create({"collect": str(out), "debug": False, "run_dir": str(out)}))
    assert read_notes(out)[-1] == "Slides without a result yet: 3, a, b, c."
    # the last shard, a task of an array, gives the tables and the exit status
    for key, value in {"ID": 11, "MIN": 11, "MAX": 13, "STEP": 2, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    with pytest.raises(SomeSlidesFailed, match="1 slides failed"):
        run("*.tiff", "shard=auto")
    tables = {name: (out / name).read_bytes() for name in ("quantification.csv", "failures.csv")}
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "b", "c"]
    assert not [note for note in read_notes(out) if "result yet" in note]
    # another number of shards opens no slide that is finished
    monkeypatch.setattr(SlideMapper, "map", lambda *_, **__: pytest.fail("it is finished"))
    with pytest.raises(SomeSlidesFailed):
        run("*.tiff", "shard=1/1")  # d fails again
    with pytest.raises(SomeSlidesFailed, match="1 slides failed"):
        collect_maps(OmegaConf.create({"collect": str(out), "debug": False, "run_dir": str(out)}))
    monkeypatch.undo()
    with pytest.raises(SomeSlidesFailed, match="1 of 4 slides failed"):
        run("*.tiff", f"output={whole}", f"run_dir={whole}")
    for name, content in tables.items():
        assert (whole / name).read_bytes() == (out / name).read_bytes() == content
    for name in "abc":
        for file in ("quantification.json", "overlay.png"):
            assert (whole / name / file).read_bytes() == (out / name / file).read_bytes()


def test_collect_folder_without_records_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no records of slides \(.records\)"):
        collect_maps(OmegaConf.create({"collect": str(tmp_path), "debug": False, "run_dir": str(tmp_path)}))


def test_infer_collect_counts_failures_of_its_run_only(
    tmp_path: Path, slides: Path, run: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (slides / "d.tiff").write_bytes(b"II*\0")
    with pytest.raises(SomeSlidesFailed):
        run("*.tiff", "shard=1/1")
    (slides / "d.tiff").unlink()
    run("*.tiff", "shard=1/1")
    with monkeypatch.context() as patch:  # shards that have nothing to do leave the tables
        patch.setattr(InferenceTables, "write", lambda *_: pytest.fail("nothing has changed"))
        run("*.tiff", "shard=1/1")
    (out / "report.html").unlink()
    run("*.tiff", "shard=1/1")
    assert (out / "report.html").exists()
    collect_maps(OmegaConf.create({"collect": str(out), "debug": False, "run_dir": str(out)}))
    assert read_column(out / "failures.csv", "slide_id") == ["d"]


def test_infer_copied_folder_of_a_slide_is_no_row(
    tmp_path: Path, run: Infer, list_warnings: Callable[[], list[str]]
) -> None:
    out = tmp_path / "out"
    run("a.tiff")
    shutil.copytree(out / "a", out / "a_backup")
    run("a.tiff")
    assert read_column(out / "quantification.csv", "slide_id") == ["a"]
    assert any("a_backup: it has the results of slide a" in text for text in list_warnings())


def test_infer_other_override_or_reader_is_other_provenance(tmp_path: Path, slides: Path, run: Infer) -> None:
    out, image = tmp_path / "out", np.full((512, 640, 3), 244, np.uint8)
    image[100:400, 100:500] = (215, 120, 180)
    for name in ("d", "e"):
        write_pyramid(slides / f"{name}.tiff", image)
    run("d.tiff", "mpp_override=0.4")
    run("e.tiff", "mpp_override=0.8")
    assert read_column(out / "quantification.csv", "slide_id") == ["e"]
    assert read_notes(out)[0].startswith("1 slide ")
    assert [read_column(out / "quantification.csv", f"mpp_{key}") for key in ("x", "y", "source")] == [
        ["0.8"], ["0.8"], ["override"],
    ]  # fmt: skip
    run("d.tiff", "mpp_override=0.8", "reader=openslide")
    assert read_column(out / "quantification.csv", "slide_id") == ["d"]
    run("[de].tiff", "mpp_override=0.8")
    assert not read_notes(out)
    facts = json.loads((out / "d" / "quantification.json").read_text())
    assert facts["reader"] == "fast"
    assert facts["made_with"]["tissue_rules"] == RULES
    assert read_column(out / "quantification.csv", "tissue_how") == ["strict", "strict"]
    assert read_column(out / "quantification.csv", "unscored_tissue_px") == ["0", "0"]


def test_infer_unknown_mpp_is_refused_or_noted(tmp_path: Path, slides: Path, run: Infer) -> None:
    out, image = tmp_path / "out", np.full((512, 640, 3), 244, np.uint8)
    image[100:400, 100:500] = (215, 120, 180)
    write_pyramid(slides / "d.tiff", image)
    with pytest.raises(SomeSlidesFailed):
        run("d.tiff")
    (failure,) = read_column(out / "failures.csv", "message")
    assert "µm/px is unknown, and the network was trained at 2 µm/px" in failure
    run("d.tiff", "allow_unknown_mpp=true")
    facts = json.loads((out / "d" / "quantification.json").read_text())
    assert (facts["tumor_mm2"], facts["made_with"]["allow_unknown_mpp"]) == (None, True)
    (note,) = facts["notes"]
    assert "µm/px of the slide is unknown (allow_unknown_mpp)" in note
    assert "was read as it is by a network that was trained at 2 µm/px" in (out / "d" / "slide.html").read_text()


def test_infer_replaced_slide_file_warns_and_is_mapped_again(
    tmp_path: Path, slides: Path, run: Infer, list_warnings: Callable[[], list[str]]
) -> None:
    run("a.tiff")
    run("a.tiff")
    assert not [message for message in list_warnings() if "another file" in message]
    draw(slides / "more" / "a.tiff")
    run("more/a.tiff")
    (warning,) = {message for message in list_warnings() if "another file" in message}
    assert str(slides / "more" / "a.tiff") in warning


def test_infer_other_precision_than_threshold_is_noted(tmp_path: Path, run: Infer) -> None:
    path = segmentation_checkpoint(tmp_path / "half.ckpt")
    content = torch.load(path, weights_only=True)
    content["panda"]["precision"] = "bf16"
    torch.save(content, path)
    run("a.tiff", f"checkpoint={path}", "engine.precision=fp32")
    (note,) = read_notes(tmp_path / "out")
    assert "engine.precision=bf16. These maps have fp32" in note
    run("a.tiff", f"checkpoint={path}", "engine.precision=bf16")
    assert not read_notes(tmp_path / "out")
    run("a.tiff", f"checkpoint={path}", "threshold=0.5")
    assert not read_notes(tmp_path / "out")


def test_infer_provider_uses_its_own_threshold(tmp_path: Path, run: Infer) -> None:
    searched = {"criterion": "f1", "score": 0.5, "chosen_on": "here", "date": "2026-01-01T00:00:00Z"}
    own = {name: {"value": value, **searched} for name, value in (("x", 0.2), ("y", 0.7))}
    choice = {"value": 0.4, **searched, "by_provider": own}
    path = segmentation_checkpoint(tmp_path / "own.ckpt", threshold=choice)
    out = tmp_path / "out"
    run("a.tiff", f"checkpoint={path}", "provider=y")
    assert read_column(out / "quantification.csv", "threshold") == ["0.7"]
    assert not read_notes(out)
    assert json.loads((out / "inference.json").read_text())["provider"] == "y"
    run("a.tiff", f"checkpoint={path}")
    assert read_column(out / "quantification.csv", "threshold") == ["0.4"]
    (note,) = read_notes(out)
    assert "(x 0.200, y 0.700)" in note
    assert "0.400. provider=… selects another" in note
    with pytest.raises(ConfigError, match="provider=z: the checkpoint has thresholds for x, y"):
        run("a.tiff", f"checkpoint={path}", "provider=z")
    with pytest.raises(ConfigError, match=r"provider=x: not used with threshold="):
        run("a.tiff", f"checkpoint={path}", "provider=x", "threshold=0.3")
    with pytest.raises(ConfigError, match="provider=x: the checkpoint has one threshold"):
        run("a.tiff", "provider=x")


def test_infer_faults_of_labels_slides_and_provider_at_once(tmp_path: Path, run: Infer) -> None:
    wrong = ("labels=nowhere", "provider=x", "quantify.min_region_px=-1")
    with pytest.raises(ConfigError) as caught:
        run("z.tiff", *wrong)
    named = [fault.partition("=")[0] for fault in caught.value.faults]
    assert named == ["quantify.min_region_px", "labels", "slides", "provider"]
    # without the checkpoint it cannot be known whether it has a threshold for the provider
    with pytest.raises(ConfigError) as caught:
        run(
            "a.tiff",
            *wrong,
            "checkpoint=nothing.ckpt",
            "grading_checkpoint=none.ckpt",
            "mpp_override=99",
            "reader=slow",
        )
    said = (
        "reader=slow",
        "quantify.min_region_px=-1",
        "mpp_override=99",
        "checkpoint nothing.ckpt",
        "checkpoint none.ckpt",
        "labels=nowhere",
    )
    assert len(caught.value.faults) == len(said)
    for part in said:
        assert part in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        run("a.tiff", *wrong, "checkpoint=nothing.ckpt", "threshold=0.4567")
    for part in (
        "threshold=0.4567 must be a multiple of 0.001 with labels=…",
        "quantify.min_region_px=-1",
        "provider=x: not used with threshold",
        "checkpoint nothing.ckpt",
        "labels=nowhere",
    ):
        assert part in str(caught.value)
    (tmp_path / "train.csv").write_text("no,such,table\n")
    with pytest.raises(ConfigError, match=r"2 faults(.|\n)*min_region_px=-1(.|\n)*train\.csv"):
        run("a.tiff", f"labels={tmp_path}", "quantify.min_region_px=-1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("threshold", "steps"),
    [
        ("0.0004", "give threshold=0.001"),
        ("0.4567", "give threshold=0.456 or threshold=0.457"),
        ("0.9996", "give threshold=0.999"),
    ],
)
def test_infer_labels_take_a_step_of_the_threshold_only(run: Infer, threshold: str, steps: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run("a.tiff", "labels=nowhere", f"threshold={threshold}")
    (fault,) = (one for one in caught.value.faults if "labels=nowhere" not in one)
    assert fault == f"threshold={threshold} must be a multiple of 0.001 with labels=…, the step of the scores: {steps}"


def test_infer_unexpected_error_is_logged_with_traceback(
    tmp_path: Path, run: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(slide_files, "write_heatmap", broken)
    with pytest.raises(SomeSlidesFailed):
        run("a.tiff")
    assert read_column(tmp_path / "out" / "failures.csv", "error") == ["KeyError"]
    log = (tmp_path / "out" / "infer.log").read_text()
    assert "inference of a: KeyError: 'x'" in log
    assert "Traceback" in log
    assert "in broken" in log


def test_infer_heatmap_is_written_beside_other_files(run: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = threading.Event()

    def wait(*given: Any, **options: Any) -> None:
        assert exported.wait(60)
        write_heatmap(*given, **options)

    def show(*given: Any) -> None:
        write_ome_tiff(*given)
        exported.set()

    monkeypatch.setattr(slide_files, "write_heatmap", wait)
    monkeypatch.setattr(slide_files, "write_ome_tiff", show)
    run("a.tiff")


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_infer_out_of_memory_ends_run(run: Infer, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(slide_files, "write_heatmap", full)
    with pytest.raises(ExhaustedError, match=r"memory .* is exhausted"):
        run("*.tiff")


def test_infer_slide_files_are_written_under_one_lock(
    tmp_path: Path, run: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def write(path: Path, facts: dict[str, Any]) -> None:
        try:
            with hold_lock(path.with_name("canvas.zarr"), wait=False):
                pass
        except LockedError:
            held.append(path.name)
        write_json(path, facts)

    monkeypatch.setattr(slide_result, "write_json", write)
    run("a.tiff")
    assert held == ["quantification.json"]


def test_infer_post_workers_write_the_same_files(tmp_path: Path, slides: Path, run: Infer) -> None:
    (slides / "bad.tiff").write_bytes(b"II*\0")
    checkpoint = grading_checkpoint(tmp_path / "grader.ckpt")
    found = []
    for processes in (0, 2):
        with pytest.raises(SomeSlidesFailed, match="1 of 3 slides failed"):
            run("[ab]*.tiff", f"grading_checkpoint={checkpoint}", f"engine.post_workers={processes}")
        files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
        dated = {"infer.log", "inference.json", "report.html"}
        found.append({str(p): p.read_bytes() for p in files if p.name not in dated and p.parent.name != ".records"})
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]
    assert str(tmp_path / "out" / "b" / "attention_tiles.png") in found[0]


def test_infer_calibrated_grade_keeps_class_and_is_marked(tmp_path: Path, run: Infer) -> None:
    def grade(**changes: Any) -> Any:
        path = grading_checkpoint(tmp_path / "grader.ckpt", **changes)
        (result,) = run("a.tiff", f"grading_checkpoint={path}", f"output={tmp_path / 'out'}")
        return result.grade

    origin = {"note": "", "chosen_on": "30 validation slides", "date": "2026-01-01T00:00:00Z"}
    plain = grade()
    assert (plain.abstain_below, plain.mark) == (None, "")
    assert "mark" not in (tmp_path / "out" / "quantification.csv").read_text()
    calibration, least = {"value": 0.5, **origin}, {"value": 0.99, "risk": 0.1, **origin}
    found = grade(calibration=calibration, abstain_below=least)
    expected = np.square(plain.probabilities)  # at half the temperature
    assert found.probabilities == pytest.approx(expected / expected.sum())
    assert (found.predicted, found.mark) == (plain.predicted, "not certain enough to grade")
    out = tmp_path / "out"
    stored = json.loads((out / "a" / "quantification.json").read_text())["grade"]
    assert (stored["mark"], stored["abstain_below"]) == ("not certain enough to grade", 0.99)
    assert read_column(out / "quantification.csv", "mark") == ["not certain enough to grade"]
    assert float(read_column(out / "quantification.csv", "confidence")[0]) == pytest.approx(found.confidence)
    said = f"not certain enough to grade: its confidence is {found.confidence:.2f}, below 0.99"
    assert said in (out / "a" / "slide.html").read_text()
    assert "1 of 1 slides is not certain enough to grade: a." in (out / "report.html").read_text()
    grade(bag="patient")
    assert any(
        note.startswith("The grader was trained on bags of all slides of a patient.") for note in read_notes(out)
    )
    certain = grade(calibration=calibration, abstain_below=least | {"value": 0.1})
    assert (certain.mark, certain.probabilities) == ("", found.probabilities)
    assert read_column(out / "quantification.csv", "mark") == [""]


def test_infer_full_disk_in_post_worker_ends_run(tmp_path: Path, run: Infer, small_disk: Callable[[str], Path]) -> None:
    run("[ab].tiff")
    disk = small_disk("48k")
    with pytest.raises(OSError, match="No space left"):
        run("[ab].tiff", f"run_dir={disk}", "engine.post_workers=2")
    assert not list(disk.rglob("quantification.json"))


def test_infer_row_of_earlier_run_is_rebuilt_unchanged(tmp_path: Path, run: Infer) -> None:
    run("a.tiff")
    before = (tmp_path / "out" / "quantification.csv").read_text()
    run("b.tiff")
    assert (tmp_path / "out" / "quantification.csv").read_text().splitlines()[:2] == before.splitlines()


def test_infer_folder_of_older_version_is_noted(tmp_path: Path, run: Infer) -> None:
    old = tmp_path / "out" / "old"
    old.mkdir(parents=True)
    (old / "quantification.json").write_text('{"slide_id": "old", "threshold": 0.5}')
    run("a.tiff")
    assert read_column(tmp_path / "out" / "quantification.csv", "slide_id") == ["a"]
    assert read_notes(tmp_path / "out")[0].startswith("1 slide ")


def test_infer_failures_stay_until_slide_succeeds(tmp_path: Path, slides: Path, run: Infer) -> None:
    out, good = tmp_path / "out", (slides / "a.tiff").read_bytes()
    for name in ("a", "b"):
        (slides / f"{name}.tiff").write_bytes(b"II*\0 no slide")
    for name in ("a", "b"):
        with pytest.raises(SomeSlidesFailed, match="1 of 1"):
            run(f"{name}.tiff")
    run("c.tiff")
    assert read_column(out / "failures.csv", "slide_id") == ["a", "b"]
    (slides / "a.tiff").write_bytes(good)
    run("a.tiff")
    assert read_column(out / "failures.csv", "slide_id") == ["b"]
    assert read_column(out / "quantification.csv", "slide_id") == ["a", "c"]
    # a slide that fails when it is run again has no row any more, and comes back when it succeeds
    (slides / "a.tiff").write_bytes(b"")
    with pytest.raises(SomeSlidesFailed):
        run("a.tiff")
    assert read_column(out / "quantification.csv", "slide_id") == ["c"]
    run("c.tiff")
    assert read_column(out / "quantification.csv", "slide_id") == ["c"]
    # failures of other settings are another matter
    run("c.tiff", "threshold=0.9")
    assert read_column(out / "failures.csv", "slide_id") == []
    # the table is made from the records
    with pytest.raises(SomeSlidesFailed):
        run("a.tiff", "threshold=0.9")
    (out / "failures.csv").unlink()
    run("c.tiff", "threshold=0.9")
    assert read_column(out / "failures.csv", "slide_id") == ["a"]
    # a folder of an older version has only the table, of which another one may lack a column
    for column in ("stage", "stagf"):
        shutil.rmtree(out / ".records")
        (out / "failures.csv").write_text((out / "failures.csv").read_text().replace("stage", column, 1))
        run("c.tiff", "threshold=0.9")
        assert read_column(out / "failures.csv", "slide_id") == (["a"] if column == "stage" else [])


@pytest.mark.parametrize("workers", [0, 1])
def test_infer_canvas_that_cannot_be_closed_fails_its_slide(
    tmp_path: Path, run: Infer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    close = CanvasWriter.close

    def fail(writer: CanvasWriter) -> Canvas:
        if writer.path.parent.name == "a":
            raise PandaError("tiles are missing")
        return close(writer)

    monkeypatch.setattr(CanvasWriter, "close", fail)
    with pytest.raises(SomeSlidesFailed, match="1 of"):
        run("*.tiff", f"engine.post_workers={workers}")
    out = tmp_path / "out"
    assert read_column(out / "failures.csv", "message") == ["tiles are missing"]
    assert read_column(out / "quantification.csv", "slide_id") == ["b", "c"]
    assert [path.name for path in (out / "a").iterdir() if not path.name.endswith(".lock")] == []


def test_infer_failed_grading_keeps_quantification(tmp_path: Path, run: Infer) -> None:
    out = tmp_path / "out"
    tiles = {"how": "guided", "k": 2, "random_fraction": 0.0, "min_tissue": 1.0, "seed": 0}
    grader = grading_checkpoint(tmp_path / "grade.ckpt", tiles=tiles, tile_size=512)
    with pytest.raises(SomeSlidesFailed, match="1 only in grading"):
        run("a.tiff", f"grading_checkpoint={grader}")
    facts = json.loads((out / "a" / "quantification.json").read_text())
    assert facts["grade"] is None
    assert "no tile of 512 px" in facts["grade_note"]
    assert facts["tissue_mm2"] > 0
    assert "Not graded: " in (out / "a" / "slide.html").read_text()
    assert {"heatmap.png", "overlay.png", "regions.geojson", "probability.ome.tiff"} <= {
        path.name for path in (out / "a").iterdir()
    }
    assert read_column(out / "failures.csv", "stage") == ["grading"]
    assert read_column(out / "quantification.csv", "isup_predicted") == [""]
    assert float(read_column(out / "quantification.csv", "tissue_mm2")[0]) > 0
    assert "1 not graded" in (out / "report.html").read_text()
    # and a grader that can clears it
    able = grading_checkpoint(tmp_path / "able.ckpt")
    run("a.tiff", f"grading_checkpoint={able}")
    assert read_column(out / "failures.csv", "slide_id") == []
    assert read_column(out / "quantification.csv", "isup_predicted")[0] in set("012345")
    assert (out / "a" / "attention.png").is_file()
    with pytest.raises(SomeSlidesFailed):
        run("a.tiff", f"grading_checkpoint={grader}")
    assert not list((out / "a").glob("attention*.png")), "of a grade that is none any more"


def test_infer_slides_seen_in_training_are_marked(tmp_path: Path, run: Infer) -> None:
    seen = segmentation_checkpoint(tmp_path / "seen.ckpt", train_slides=["a"], val_slides=["b"])
    run("*.tiff", f"checkpoint={seen}")
    out = tmp_path / "out"
    assert read_column(out / "quantification.csv", "in_sample") == ["training", "validation", ""]
    report = (out / "report.html").read_text()
    assert "trained on 1 of these slides" in report
    assert "threshold were chosen on 1 of these slides" in report
    assert "trained on this slide" in (out / "a" / "slide.html").read_text()
    assert "chosen with this slide" in (out / "b" / "slide.html").read_text()
    facts = json.loads((out / "c" / "quantification.json").read_text())
    assert facts["in_sample"] is None


@pytest.mark.parametrize("name", ["..tiff", "...tiff", "report.html.tiff", "a\nb.tiff"])
def test_infer_invalid_slide_id_is_a_failure(tmp_path: Path, slides: Path, run: Infer, name: str) -> None:
    draw(slides / name)
    with pytest.raises(SomeSlidesFailed):
        run(name)
    out = tmp_path / "out"
    assert "rename the file" in read_column(out / "failures.csv", "message")[0]
    assert not list(tmp_path.glob("*.json"))
    assert not list(out.glob("*.png"))


def test_infer_outputs_of_another_kind_are_named(tmp_path: Path, run: Infer) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "canvas.zarr").write_text("mine")
    (out / "b" / "heatmap.png").mkdir(parents=True)
    with pytest.raises(SomeSlidesFailed, match="2 of 2 slides failed"):
        run("[ab].tiff")
    messages = read_column(out / "failures.csv", "message")
    assert messages == [
        f"{out / 'a' / 'canvas.zarr'}: Not a directory; a file is in the place of a folder: move it",
        f"{out / 'b' / 'heatmap.png'}: Is a directory; a folder is in the place of a file: move it",
    ]
    assert (out / "a" / "canvas.zarr").read_text() == "mine"


def test_infer_damaged_canvas_warns_and_is_made_again(
    tmp_path: Path, run: Infer, list_warnings: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    run("a.tiff")
    before = (out / "quantification.csv").read_text()
    chunk = next(path for path in (out / "a" / "canvas.zarr" / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    run("a.tiff")
    (warning,) = [message for message in list_warnings() if "made again" in message]
    assert "canvas.zarr" in warning
    assert (out / "quantification.csv").read_text() == before
    caplog.clear()
    run("a.tiff")
    assert not [message for message in list_warnings() if "made again" in message]
    chunk.unlink()
    run("a.tiff")
    assert chunk.is_file()


def test_predict_concurrent_runs_make_canvas_once(tmp_path: Path, slides: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    made: list[int] = []
    failed: list[BaseException] = []
    start = threading.Barrier(2)

    def work(number: int) -> None:
        try:
            predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
            mapper = SlideMapper(predictor, 0.5, QuantifySettings())
            with Slide.open(slides / "a.tiff") as slide:
                tissue = find_tissue(slide)
                start.wait()
                folder = tmp_path / str(number)
                with mapper.map(slide, tissue, folder, tmp_path / "c.zarr", lambda *_: made.append(number)) as mapped:
                    mapped.files.write()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(made)) == 1
    one, two = (json.loads((tmp_path / n / "quantification.json").read_text()) for n in ("1", "2"))
    assert one == two


def test_predict_canvas_is_not_replaced_while_read(tmp_path: Path, slides: Path) -> None:
    engine = EngineSettings(device="cpu")
    first = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), engine)
    other = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "b.ckpt", overlap=0.25), engine)
    with Slide.open(slides / "a.tiff") as slide:
        tissue = find_tissue(slide)
        path = tmp_path / "c.zarr"
        thread = threading.Thread(target=lambda: other.predict(slide, tissue, path))
        with first.hold_canvas(slide, tissue, path) as canvas:
            before = np.asarray(canvas)
            thread.start()
            thread.join(2)
            assert thread.is_alive()
            assert np.array_equal(np.asarray(canvas), before)
        thread.join()
        assert other.predict(slide, tissue, path).fingerprint != canvas.fingerprint


def test_slide_mapper_holds_canvas_until_files_are_written(tmp_path: Path, slides: Path) -> None:
    engine, path = EngineSettings(device="cpu"), tmp_path / "c.zarr"
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), engine)
    with Slide.open(slides / "a.tiff") as slide:
        mapped = SlideMapper(predictor, 0.5, QuantifySettings()).map(slide, find_tissue(slide), tmp_path / "out", path)
        with pytest.raises(LockedError), hold_lock(path, wait=False):
            pass
        with mapped:
            mapped.files.write()
        with hold_lock(path, wait=False):
            pass


def test_infer_labels_scores_slides_that_have_mask(tmp_path: Path, slides: Path, run: Infer) -> None:
    masks = tmp_path / "train_label_masks"
    masks.mkdir()
    for name in "ab":
        codes = np.zeros((512, 640, 3), np.uint8)
        codes[100:400, 100 : 300 if name == "a" else 500, 0] = 2
        tifffile.imwrite(masks / f"{name}_mask.tiff", codes, tile=(256, 256), photometric="rgb", compression="deflate")
    rows = [f"{name},karolinska,5,5+5\n" for name in "ab"]
    (tmp_path / "train.csv").write_text("image_id,data_provider,isup_grade,gleason_score\n" + "".join(rows))
    run("*.tiff", f"labels={tmp_path}", "threshold=0.42", "quantify.min_region_um2=0", "quantify.min_hole_um2=0")
    table = {row["slide_id"]: row for row in read_output_table(tmp_path / "out" / "quantification.csv")}
    assert table["c"]["dice"] == ""
    for name in "ab":
        with Slide.open(slides / f"{name}.tiff") as slide:
            canvas = Canvas.open(tmp_path / "out" / name / "canvas.zarr")
            tissue = find_tissue(slide).crop(canvas.resolution, (0, 0), canvas.resolution.size)
        found = (np.asarray(canvas) >= 0.42) & tissue
        true = np.zeros(found.shape, np.bool_)
        true[25:100, 25 : 75 if name == "a" else 125] = True
        dice = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert float(table[name]["dice"]) == pytest.approx(dice)
        assert float(table[name]["true_tumor_mm2"]) == pytest.approx(true.sum() * 4e-6)
        difference = (int(found.sum()) - int(true.sum())) * 4e-6
        assert float(table[name]["tumor_difference_mm2"]) == pytest.approx(difference)
        with Image.open(tmp_path / "out" / name / "map.png") as image:
            assert (np.asarray(image)[..., 2] > 0).any()
    assert not (tmp_path / "out" / "c" / "score.npz").exists()
    (masks / "a_mask.tiff").unlink()
    (masks / "b_mask.tiff").unlink()
    with pytest.raises(ConfigError, match=r"labels=.*train_label_masks: there is no .*train.csv; give the folder"):
        run("*.tiff", f"labels={masks}")
    with pytest.raises(ConfigError, match="none of the 3 slides has a mask there \\(2 are in its table\\)"):
        run("*.tiff", f"labels={tmp_path}")


def label_slides(tmp_path: Path) -> tuple[str, ...]:
    """Label three slides of two patients, one past its tissue, and return the keys that evaluate them."""
    for name, right in (("a", 300), ("b", 560), ("c", 0)):
        codes = np.ones((512, 640), np.uint8)
        codes[100:400, 100:right] = 2
        write_pyramid(tmp_path / "train_label_masks" / f"{name}_mask.tiff", codes)
    rows = ["a,karolinska,1,3+3", "b,karolinska,4,4+4", "c,karolinska,0,negative"]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,data_provider,isup_grade,gleason_score", *rows, ""]))
    (tmp_path / "groups.csv").write_text("image_id,patient\na,p\nb,p\nc,q\n")
    return f"labels={tmp_path}", f"groups={tmp_path / 'groups.csv'}", "threshold=0.42"


def read_evaluation(out: Path) -> EvaluationSummary:
    summary, faults = parse_summary(json.loads((out / "summary.json").read_text()))
    assert isinstance(summary, EvaluationSummary), faults
    return summary


def check_comparison(training: Path, out: Path, rows: list[dict[str, str]]) -> None:
    """Compare an evaluation with a training that found the same on its test slides, then with others."""
    shutil.copy(out / "test_slides.csv", training)
    (training / "overrides.txt").write_text("model=unet\n")
    for level, said in ((0, "data.level is 0 in .*train and 1 in .*out"), (1, "")):
        summary = {"test": {"dice": 0.9}, "data": {"settings": {"level": level, "mpp": None}}}
        (training / "summary.json").write_text(json.dumps(fill_summary(summary)))
        with pytest.raises(PandaError, match=said) if said else contextlib.nullcontext():
            compare(training, out)
    page = html.unescape((out.parent / "compare-train-out" / "compare.html").read_text())
    assert "Dice, all pixels pooled: out less train is +0.000" in page
    assert '<td data-sort="checkpoint">checkpoint</td>' in page
    assert '<td data-sort="model">model</td>' not in page, "the network of the evaluation is that of the training"
    write_table(training / "test_slides.csv", rows[1:])
    with pytest.raises(PandaError, match="the slides differ: 0 only in train, 1 only in out"):
        compare(training, out)


def test_infer_labels_are_evaluated_as_a_test_of_training(
    tmp_path: Path, run: Infer, panda_log: pytest.LogCaptureFixture
) -> None:
    labels, training = label_slides(tmp_path), tmp_path / "train"
    (training / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "best.ckpt", training / "checkpoints" / "best.ckpt")
    test = {"dice": 0.9, "dice_interval": [0.8, 0.99], "slide_specificity": 0.5}
    (training / "summary.json").write_text(json.dumps(fill_summary({"test": test})))
    run("*.tiff", *labels, f"checkpoint={training / 'checkpoints' / 'best.ckpt'}")
    out = tmp_path / "out"
    table = read_output_table(out / "test_slides.csv")
    counts = np.array([[int(row[key]) for key in ("tp_px", "fp_px", "fn_px")] for row in table])
    tp, fp, fn = counts.sum(axis=0).tolist()
    summary = read_evaluation(out)
    assert summary.test.dice == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert (summary.test.slides, summary.test.benign_slides, summary.test.groups) == (3, 1, 2)
    assert set(summary.test.by_grade) == {"0", "1", "4"}
    outside = [int(row["cancer_outside_tissue_px"]) for row in table]
    assert 15 * 75 <= outside[1] <= counts[1][2], "15 columns of the label are past the tissue"
    assert summary.test.cancer_outside_tissue_percent == pytest.approx(100 * sum(outside) / (tp + fn))
    by_key = {one.figure: one for one in summary.against_training}
    assert (by_key["dice"].test, by_key["dice"].is_within) == (0.9, False)
    assert by_key["slide_specificity"].is_within is None
    assert summary.agreement is not None
    assert summary.agreement.slides == 3
    page = html.unescape((out / "report.html").read_text())
    for said in (
        "Against the labels",
        "Against the test of the training",
        "of the labelled cancer",
        "limits of agree",
        "Largest errors",
        "b/slide.html#x=",
    ):
        assert said in page
    check_comparison(training, out, table)
    said = f"evaluation (test on 3 slides at threshold 0.420): Dice {summary.test.dice:.3f} (all tissue: "
    assert format_headline(summary).startswith(said)
    assert "False alarms: 1 of 1 cancer-free slides" in panda_log.text
    with pytest.raises(ConfigError, match=r"groups=.* is used with labels=… only"):
        run("*.tiff", labels[1])


def read_scored_files(folder: Path) -> dict[str, bytes]:
    patterns = ("score.npz", "errors.json", "missed_*", "false_alarm_*")
    return {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern)}


def test_infer_labels_over_shards_are_evaluated_alike(tmp_path: Path, slides: Path, run: Infer) -> None:
    labels, parts = label_slides(tmp_path), tmp_path / "parts"
    run("*.tiff", *labels)
    whole = tmp_path / "out"
    for part in ("shard=1/2", "shard=2/2"):
        run("*.tiff", *labels, f"output={parts}", f"run_dir={parts}", part)
    collected = OmegaConf.create({"collect": str(parts), "debug": False, "run_dir": str(parts)})
    collect_maps(collected)
    changing = {"name", "created", "threshold_choice"}
    contents = [read_evaluation(folder).model_dump(exclude=changing) for folder in (whole, parts)]
    assert contents[0] == contents[1]
    for name in ("test_slides.csv", "errors.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    galleries = [lay_out_errors(folder, folder / "quantification.csv") for folder in (whole, parts)]
    assert galleries[0] == galleries[1]
    rows = read_output_table(whole / "test_slides.csv")
    for kind, key in (("missed", "fn_px"), ("false_alarm", "fp_px")):
        found = [SlideErrors.model_validate_json((whole / name / "errors.json").read_bytes()) for name in "abc"]
        assert [getattr(one, kind).area_px for one in found] == [int(row[key]) for row in rows]

    (parts / "a" / "score.npz").write_bytes(b"no zip")
    collect_maps(collected)
    damaged = read_evaluation(parts)
    assert damaged.test.slides == 2
    assert any("score.npz: it cannot be read" in note for note in damaged.notes)

    before = (whole / "summary.json").read_bytes()
    draw(slides / "d.tiff")
    run("d.tiff", "threshold=0.42")
    assert (whole / "summary.json").read_bytes() == before, "it is still true of its slides"
    scored = {name: read_scored_files(whole / name) for name in "ab"}
    assert {"score.npz", "errors.json", "missed_1.jpg", "false_alarm_1.jpg"} <= scored["a"].keys()
    run("[ab].tiff", "threshold=0.42")
    assert (whole / "summary.json").read_bytes() == before
    assert {name: read_scored_files(whole / name) for name in "ab"} == scored
    run("a.tiff", "threshold=0.42", "colour_map=viridis")
    assert not (whole / "summary.json").exists(), "one slide has no score now"
    assert not (whole / "errors.csv").exists()
    assert {name: read_scored_files(whole / name) for name in "ab"} == {"a": {}, "b": scored["b"]}
    (kept,) = (whole / KEPT_TABLES).glob("summary_*.json")
    assert kept.read_bytes() == before


def test_infer_labels_of_provider_in_checkpoint_only_are_scored(tmp_path: Path, run: Infer) -> None:
    own = LabelMap(names={0: "other", 9: "cancer"}, cancer=(9,), unlabelled=())
    checkpoint = segmentation_checkpoint(tmp_path / "own.ckpt", label_maps={"leuven": own.model_dump(mode="json")})
    codes = np.zeros((512, 640), np.uint8)
    codes[100:400, 100:300] = 9
    write_pyramid(tmp_path / "train_label_masks" / "a_mask.tiff", codes)
    (tmp_path / "train.csv").write_text("image_id,data_provider,isup_grade,gleason_score\na,leuven,5,5+5\n")
    run("a.tiff", f"labels={tmp_path}", f"checkpoint={checkpoint}", "threshold=0.42")
    (row,) = read_output_table(tmp_path / "out" / "quantification.csv")
    assert float(row["true_tumor_mm2"]) == pytest.approx(300 * 200 * 0.25e-6, rel=0.05)
    with pytest.raises(ConfigError, match=r"'leuven' is unknown; .*conf/label_maps/leuven\.yaml"):
        run("a.tiff", f"labels={tmp_path}")
