"""Pages made from the folders of runs, inferences, slides and sweeps."""

import base64
import csv
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from panda.errors import PandaError
from panda.inference.picture_file import write_png
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_result import LABEL_METRICS, Provenance
from panda.report.agreement import draw_agreement
from panda.report.axes import pick_ticks
from panda.report.charts import Bar, Line, draw_bars, draw_lines
from panda.report.choices import find_choices
from panda.report.figure_tables import make_splits_table
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.report.job_end import JobEnd
from panda.report.ranking import describe_ranking
from panda.report.run_folder import find_subfolder, make_link, make_natural_key, parse_number, read_picture
from panda.report.run_page import write_run_page
from panda.report.slide_page import write_slide_page
from panda.report.sweep_jobs import rank_jobs, read_jobs
from panda.report.sweep_page import write_sweep
from panda.report.table import format_value, name_figure
from panda.tasks.metadata import TrainedResolution
from panda.tasks.threshold import ThresholdChoice
from tests.summaries import fill_summary, make_summary

EVIL = "<script>alert(1)<"  # a folder may bear it; a slash it cannot


class _Links(HTMLParser):
    """Collects what a page points to, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in {"href", "src", "srcset", "action"}:
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def check_page(page: Path) -> str:
    """Check that a page holds only its own script, asks nothing of a server and links only to existing files."""
    text = page.read_text(encoding="utf-8")
    links = _Links()
    links.feed(text)
    assert links.scripts == 1
    assert not links.handlers
    assert "@import" not in text
    assert "url(" not in text
    for address in links.addresses:
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in text, address
        elif not re.match(r"data:image/(jpeg|png);base64,", address):
            assert not re.match(r"[a-z]+:|//", address)
            assert (page.parent / unquote(address)).exists(), address
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text
    return text


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _slide(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    picture = np.full((60, 90, 4), 120, np.uint8)
    for name in ("overlay", "heatmap"):
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    region = {"id": 1, "area_px": 1200, "area_mm2": 0.0123, "centroid": [10.4, 20.6], "bbox": [0, 1, 2, 3]}
    region |= {"length_px": 60.5, "length_mm": 0.121, "box_px": [0, 0, 1, 1], "start_px": [0, 0]}
    provenance = Provenance.from_values(
        checkpoint="best.ckpt", grading_checkpoint=None, segmentation={}, grader=None, threshold=0.43, quantify={},
        precision="fp32", compiled=False, tta="none", tissue_rules=1, reader="auto", mpp_override=None,
        allow_unknown_mpp=False, normalize=None,
    ).model_dump(mode="json")  # fmt: skip
    content = {
        "slide_id": folder.name, "threshold": 0.43, "tumor_px": 1200, "tissue_px": 4800,
        "tumor_percent_of_tissue": 25.0, "tumor_mm2": 0.0123, "tissue_mm2": 0.0492,
        "mm2_note": "", "num_regions": 1, "mpp": [0.5, 0.5],
        "mpp_note": "from OpenSlide", "downsample": 4.0, "tissue_how": "strict", "grade": None,
        "regions": [region | {"mean_probability": 0.812, "max_probability": 0.99}],
        "unscored_tissue_px": 0, "nearby": [], "px_at_threshold": [0] * 1001, "settings": {},
        "file": {"name": "a.tiff", "bytes": 1, "mtime_ns": 0},
        "mpp_source": "openslide", "reader": "fast", "in_sample": None, "grade_note": None, "against_label": None,
        "made_with": provenance,
    }  # fmt: skip
    (folder / "quantification.json").write_text(json.dumps(content | changes))
    (folder / "regions.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    return folder


def _summary(**changes: Any) -> dict[str, Any]:
    test = {"dice": 0.77, "dice_mean_slide": 0.75, "dice_mean_slide_interval": [0.66, 0.83], "iou": None, "slides": 5}
    test |= {
        "all_tissue_dice": 0.31,
        "fp_mm2_benign_slides": 0.02,
        "by_provider": {"radboud": {"dice": 0.7, "slides": 5}},
    }
    choice = {"value": 0.43, "criterion": "dice_pooled", "score": 0.81, "chosen_on": "5 validation slides"}
    content = {
        "task": "segmentation", "name": f"demo {EVIL}", "created": "2026-01-01T10:00:00Z", "seed": 0,
        "threshold": 0.43, "threshold_choice": choice, "val": {"dice": 0.8, "dice_mean_slide": 0.78}, "test": test,
        "data": {"slides": {"train": 14, "val": 5, "test": 5}, "groups": "by slide", "left_out": {"missing_mask": 1}},
        "notes": [f"note {EVIL}"], "seconds": 93.1, "device": "cpu",
    }  # fmt: skip
    if changes.get("task") == "grading":
        content["val"] = {"qwk": 0.7}
    return content | changes


def _run(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(fill_summary(summary or _summary())))
    (folder / "config.yaml").write_text(f"name: '{EVIL}'\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = _run(tmp_path / "demo")
    rows: list[dict[str, Any]] = []
    for epoch in range(3):
        rows.append({"epoch": epoch, "step": epoch, "train/loss": 1 / (epoch + 1), "val/loss": "", "val/dice": ""})
        rows.append({"epoch": epoch, "step": epoch, "train/loss": "", "val/loss": 0.9, "val/dice": 0.2 * epoch})
    _write_csv(folder / "metrics.csv", rows)
    _write_csv(folder / "threshold_curve.csv", [{"threshold": k / 10, "dice_pooled": 0.5} for k in range(10)])
    failure = {"slide_id": EVIL, "stage": "open", "error": "SlideError", "message": f"cannot be opened {EVIL}"}
    _write_csv(folder / "failures.csv", [failure])
    slides = [
        {"slide_id": "good", "provider": "radboud", "dice": "0.9", "tumor_mm2": "1.5"},
        {"slide_id": EVIL, "provider": EVIL, "dice": "0.2", "tumor_mm2": ""},
        {"slide_id": "benign", "provider": "radboud", "dice": "", "tumor_mm2": "0.0"},
        {"slide_id": "../..", "provider": "radboud", "dice": "0.5", "tumor_mm2": "0.0"},
    ]
    _write_csv(folder / "test_slides.csv", slides)
    for name in ("good", EVIL):
        _slide(folder / "slides" / name)
    (folder / "panels").mkdir()
    cv2.imwrite(str(folder / "panels" / "patches.png"), np.zeros((40, 200, 3), np.uint8))
    return folder


def test_write_run_page_shows_figures_and_meanings(run: Path) -> None:
    text = html.unescape(check_page(write_run_page(run)))
    for said in ("0.75", "95 % interval 0.66 to 0.83", "On 5 test slides", "chosen on 5 validation slides", "by slide",
                 "calling all tissue tumour would give 0.31", "all tissue: 0.31", "1 (missing mask)",
                 "best epoch 2", "1 min 33 s", "With 5 slides the figures are coarse", "threshold 0.43"):  # fmt: skip
        assert said in text
    assert text.index(">0.200<") < text.index(">0.900<")  # the worst slide first
    assert "so it has no Dice" in text


def test_write_run_page_seen_slides_are_not_called_new(tmp_path: Path) -> None:
    note = "The segmentation was trained on 3 test slides: their figures flatter. Use the data.seed of its run."
    said = {"seen": [note], "new": ["No training slide has class 4: what is absent cannot be learnt."]}
    for name, notes in said.items():
        scores = {"qwk": 0.68, "slides": 60}
        folder = _run(tmp_path / name, _summary(task="grading", test=scores, target="isup", notes=notes))
        text = html.unescape(write_run_page(folder).read_text())
        assert ("On 60 test slides that were not used in training or in any choice" in text) == (name == "new")
        assert ("On 60 test slides, of which the notes above say more" in text) == (name == "seen")


@pytest.mark.parametrize(("percent", "shown"), [(0.4, False), (None, False), (3.21, True)])
def test_write_run_page_shows_cancer_outside_tissue(tmp_path: Path, percent: float | None, shown: bool) -> None:
    test = {"dice": 0.77, "slides": 60, "cancer_outside_tissue_percent": percent, "cancer_outside_tissue_mm2": 1.5}
    folder = _run(tmp_path / "run", _summary(test=test))
    rows = [{"slide_id": "a", "dice": 0.7, "cancer_outside_tissue_mm2": 1.5, "cancer_outside_tissue_px": 4 * shown}]
    _write_csv(folder / "test_slides.csv", rows)
    text = html.unescape(check_page(write_run_page(folder)))
    assert ("3.2 % of the labelled cancer (1.50 mm²) is outside the tissue found" in text) == shown
    assert ("counts as missed" in text) == shown
    slides = text[text.index(">Test slides</h2>") :].partition("</table>")[0]
    assert ("Labelled cancer outside the tissue" in slides) == shown


def test_write_run_page_escapes_slide_names(run: Path) -> None:
    text = write_run_page(run).read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    slide = run / "slides" / EVIL / "slide.html"
    assert "<script>alert" not in check_page(slide)
    assert make_link("slides", EVIL, "slide.html") in text
    assert find_subfolder(run / "slides", "../..") is None
    assert find_subfolder(run / "slides", "x" * 300) is None


def test_write_run_page_renews_outdated_slide_pages_only(run: Path) -> None:
    write_run_page(run)
    page = run / "slides" / "good" / "slide.html"
    page.write_text("mine")
    write_run_page(run)
    assert page.read_text() == "mine"
    page.unlink()
    write_run_page(run)
    assert "Against the label" in page.read_text()


def test_write_run_page_run_without_test_is_noted(tmp_path: Path) -> None:
    folder = _run(tmp_path / "one", _summary(test=None, notes=["One slide: not generalisation."]))
    text = html.unescape(check_page(write_run_page(folder)))
    assert "Figures on the validation split" in text
    assert "This run has no test split" in text
    assert "One slide: not generalisation." in text


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"test": null, "val": {"dice": NaN}}'])
def test_write_run_page_broken_or_missing_summary(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    text = check_page(write_run_page(tmp_path))
    assert "No training curves" in text
    assert "summary.json" in text


def test_write_run_page_grading_shows_agreement_and_confusion(tmp_path: Path) -> None:
    scores = {"qwk": 0.68, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "auroc": None, "slides": 60}
    scores |= {"auroc_significant": 0.81, "auroc_significant_interval": [0.72, 0.89], "confusion": [[7, 1], [2, 9]]}
    folder = _run(tmp_path / "g", _summary(task="grading", test=scores, val={"qwk": 0.7}, target="isup"))
    rows = [{"slide_id": "near", "isup_grade": 1, "label": 1, "predicted": 1, "p0": 0.25}]
    rows.append({"slide_id": "far", "isup_grade": 5, "label": 5, "predicted": 0, "p0": 0.75})
    _write_csv(folder / "test_slides.csv", rows)
    (folder / "slides" / "near").mkdir(parents=True)
    cv2.imwrite(str(folder / "slides" / "near" / "slide.jpg"), np.zeros((40, 60, 3), np.uint8))
    text = html.unescape(check_page(write_run_page(folder)))
    assert "quadratic weighted κ of 0.68" in text
    assert text.count("0.72 to 0.89") == 2  # its card, and the table of splits
    assert "needs slides with and without cancer" in text
    assert text.index(">far<") < text.index(">near<")
    assert text.count('alt="slide"') == 1, "a slide that was only graded is shown as it is"
    assert len(re.findall(r'button">Given\b', text)) == 1, "the class is the grade: no second column for it"
    assert re.findall(r'class="diagonal"[^>]*>(\d+)<', text) == ["7", "9"]


def test_write_run_page_grading_best_epoch_is_of_checkpoint(tmp_path: Path) -> None:
    folder = _run(tmp_path / "g", _summary(task="grading", test={"qwk": 0.1, "slides": 30}, target="isup"))
    figures = [(0, 1.5, 0.6), (1, 1.2, 0.3), (2, 1.4, 0.5)]
    rows = [{"epoch": epoch, "val/loss": loss, "val/qwk": qwk, "val/auroc": 0.5} for epoch, loss, qwk in figures]
    _write_csv(folder / "metrics.csv", rows)
    text = html.unescape(check_page(write_run_page(folder)))
    assert "best epoch 1: 1.200" in text
    assert "best epoch 1: 0.300" in text
    assert "best epoch 0" not in text
    assert "AUROC, cancer against benign</" in text


def test_write_run_page_cancer_target_shows_cancer_scores(tmp_path: Path) -> None:
    scores = {"qwk": 0.4, "accuracy": 0.75, "auroc": 0.9, "slides": 30}
    folder = _run(tmp_path / "g", _summary(task="grading", test=scores, target="cancer"))
    text = html.unescape(check_page(write_run_page(folder)))
    assert "choice: AUROC of cancer against benign is 0.90; 75% of the slides got the right class." in text


def test_write_slide_page_viewer_is_self_contained(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    counts = list(range(4800, 3799, -1))
    folder = _slide(
        tmp_path / EVIL,
        view_downsample=8.0,
        px_at_threshold=counts,
        tissue_px=4800,
        tissue_mm2=0.0192,
        against_label=dict.fromkeys(LABEL_METRICS, 0.5) | {"cancer_outside_tissue_px": 0},
    )
    planes = np.zeros((40, 60, 3), np.uint8)
    planes[10:20, 10:30, 0] = 255  # blue in OpenCV's order: labelled cancer
    cv2.imwrite(str(folder / "map.png"), planes)
    cv2.imwrite(str(folder / "slide.jpg"), np.full((40, 60, 3), 200, np.uint8))
    square = [[80, 160], [240, 160], [240, 320], [80, 320], [80, 160]]
    hole = [[96, 176], [96, 192], [112, 192], [112, 176], [96, 176]]
    geometry = {"type": "MultiPolygon", "coordinates": [[square, hole], [square]]}
    features = [{"type": "Feature", "geometry": geometry, "properties": {}}]
    (folder / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    text = check_page(write_slide_page(folder))
    data = re.findall(r"data-view='(.*?)'", text)[0]
    view = json.loads(html.unescape(data))
    assert (view["width"], view["height"], view["level0"], view["um"]) == (60, 40, 8.0, 4.0)
    assert view["counts"] == counts
    assert view["mm2"] == pytest.approx(4e-6)
    (region,) = view["regions"]
    assert region["box"] == [10.0, 20.0, 30.0, 40.0]
    assert len(region["rings"]) == 3
    assert "labelled cancer" in text
    (folder / "map.png").unlink()
    text = check_page(write_slide_page(folder))
    assert "data-view" not in text
    assert 'alt="overlay"' in text, "what lacks a part of the viewer shows the pictures"


def test_write_slide_page_with_grade(tmp_path: Path) -> None:
    grade = {"target": "isup", "predicted": 3, "probabilities": [0.02, 0.05, 0.17, 0.52, 0.2, 0.04]}
    folder = _slide(tmp_path / "s", grade=grade, in_sample="training")
    (tmp_path / "report.html").touch()
    cv2.imwrite(str(folder / "attention_tiles.png"), np.zeros((30, 30, 3), np.uint8))
    text = check_page(write_slide_page(folder))
    for said in (
        "ISUP 3",
        "0.52",
        "25.0",
        "0.012",
        "Where the grading network looked",
        "trained on this slide",
        "10, 21",
    ):
        assert said in text


def test_write_slide_page_graded_slide_explains_tile_tint(tmp_path: Path) -> None:
    tiles = [{"x": 0, "y": 0, "attention": 0.7, "contribution": 0.1}]
    grade = {"target": "cancer", "predicted": 1, "probabilities": [0.2, 0.8], "tile_side_px": 64, "tiles": tiles}
    (tmp_path / "report.html").touch()
    folder = _slide(tmp_path / "s", grade=grade, view_downsample=4.0)
    cv2.imwrite(str(folder / "slide.jpg"), np.zeros((60, 90, 3), np.uint8))
    said = "the outlined squares are the tiles that were graded"
    assert said in check_page(write_slide_page(folder))
    ungraded = _slide(tmp_path / "t", view_downsample=4.0)
    cv2.imwrite(str(ungraded / "slide.jpg"), np.zeros((60, 90, 3), np.uint8))
    assert said not in write_slide_page(ungraded).read_text()


def test_write_slide_page_unknown_area_has_reason(tmp_path: Path) -> None:
    folder = _slide(
        tmp_path / "s", tumor_mm2=None, tissue_mm2=None, mm2_note="no µm/px: give data.mpp_override", mpp=None
    )
    text = write_slide_page(folder).read_text()
    assert "No areas in mm²: no µm/px: give data.mpp_override" in text
    assert 'class="none"' in text


def test_write_slide_page_names_tissue_search(tmp_path: Path) -> None:
    said = {"strict": [], "loose": ["only with the loose rule"], "whole": ["the whole slide counts as tissue"]}
    for how in said:
        text = write_slide_page(_slide(tmp_path / how, tissue_how=how)).read_text()
        for other, words in said.items():
            assert all((word in text) == (how == other) for word in words)


def test_write_slide_page_slide_with_grade_only(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    grade = {"target": "cancer", "predicted": 1, "probabilities": [0.1, 0.9]}
    (folder / "quantification.json").write_text(json.dumps({"slide_id": "s", "grade": grade}))
    text = write_slide_page(folder).read_text()
    assert "no cancer" in text
    assert "Tumour regions" not in text


def test_write_inference_page_lists_slides(tmp_path: Path) -> None:
    row = {"slide_id": "a", "tumor_percent_of_tissue": 1.5, "tumor_mm2": 0.5, "tissue_mm2": 4, "num_regions": 2}
    rows = [row | {"threshold": 0.43, "in_sample": ""}]
    rows.append(rows[0] | {"slide_id": EVIL, "tumor_percent_of_tissue": 30, "tumor_mm2": "", "in_sample": "training"})
    for r in rows:
        _slide(tmp_path / str(r["slide_id"]))
    _write_csv(tmp_path / "quantification.csv", rows)
    _write_csv(tmp_path / "failures.csv", [{"slide_id": "c", "stage": "open", "error": "SlideError", "message": "no"}])
    choice = ThresholdChoice(value=0.43, criterion="f1", score=0.8, chosen_on="validation", date="2026-01-01T00:00:00Z")
    InferenceSummary(
        checkpoint="best.ckpt", grading_checkpoint=None, threshold=0.43, threshold_choice=choice, provider=None,
        quantify=QuantifySettings(), resolution=TrainedResolution(level=1, mpp=None, train_mpp=(2.0, 2.0, 2.0)),
        precision="fp32", compiled=False, engine_choice="", tta="none", reader="auto", mpp_override=None,
        allow_unknown_mpp=False, device="cpu",
        date="2026-01-01T00:00:00Z", last_run=LastRun(slides=3, failed=1, seconds=4.0), labels=None, notes=[EVIL],
    ).write(tmp_path)  # fmt: skip
    text = html.unescape(check_page(write_inference_page(tmp_path)))
    for said in ("best.ckpt", "1 failed", "chosen on validation", "trained on 1 of these slides", "SlideError",
                 "without 1 slide of unknown µm/px"):  # fmt: skip
        assert said in text
    assert (tmp_path / "a" / "slide.html").is_file()


def test_write_inference_page_long_table_shows_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("agreement", "failure_table"):
        monkeypatch.setattr(f"panda.report.{module}.MOST_SHOWN", 5)
    rows = [
        {"slide_id": f"slide{n}", "tumor_percent_of_tissue": n, "tumor_mm2": 1, "tissue_mm2": 4, "true_tumor_mm2": n}
        for n in range(40)
    ]
    _write_csv(tmp_path / "quantification.csv", rows)
    failures = [{"slide_id": f"bad{n}", "stage": "open", "error": "E", "message": "no"} for n in range(7)]
    _write_csv(tmp_path / "failures.csv", failures)
    text = html.unescape(check_page(write_inference_page(tmp_path)))
    assert "A random sample of 5 of 40 slides; the table of all is quantification.csv." in text
    assert "The first 5 of 7." in text
    assert {"bad4", "bad5"} & set(re.findall(r"bad\d", text)) == {"bad4"}
    assert ">160<" in text, "the sum over all slides"
    assert "mean -18.500" in text.replace("−", "-"), "the bias of all slides"
    shown = re.findall(r">(slide\d+)<", text)
    assert len(set(shown)) == 5
    assert shown == re.findall(r">(slide\d+)<", html.unescape(write_inference_page(tmp_path).read_text()))


def test_write_inference_page_whole_slide_tissue_has_no_area(tmp_path: Path) -> None:
    row = {"slide_id": "a", "tumor_mm2": 0.5, "tissue_mm2": 4, "tissue_how": "strict", "unscored_tissue_px": 0}
    rows = [row, row | {"slide_id": "b", "tumor_mm2": 30, "tissue_mm2": 500, "tissue_how": "whole"}]
    _write_csv(tmp_path / "quantification.csv", rows)
    text = html.unescape(check_page(write_inference_page(tmp_path)))
    assert "without 1 slide whose whole area counts as tissue" in text
    assert ">0.50" in text
    assert ">30.50" not in text
    assert "Tissue found as" in text
    assert "Tissue not scored" not in text
    _write_csv(tmp_path / "quantification.csv", [row, row | {"slide_id": "c", "unscored_tissue_px": 7}])
    text = html.unescape(write_inference_page(tmp_path).read_text())
    assert "whole area counts as tissue" not in text
    assert "Tissue found as" not in text
    assert "Tissue not scored" in text


def test_write_inference_page_empty_folder(tmp_path: Path) -> None:
    assert "No slide was finished" in check_page(write_inference_page(tmp_path))


def test_write_sweep_ranks_jobs(tmp_path: Path) -> None:
    figures = {0: (0.6, 0.9), 1: (0.8, 0.5), 10: (0.7, 0.7)}
    for job, (val, test) in figures.items():
        summary = _summary(
            val={"dice_mean_slide": val}, test={"dice_mean_slide": test, "dice_mean_slide_interval": [0.1, 0.95]}
        )
        folder = _run(tmp_path / str(job), summary)
        (folder / "overrides.txt").write_text(f"model=m{job}\nloss={'a' if job else 'b'}\ndata={EVIL}\n")
        _write_csv(folder / "threshold_curve.csv", [{"threshold": 0.1, "dice_pooled": 0.5}])
    (tmp_path / "0" / "report.html").touch()
    failed = tmp_path / "2"
    failed.mkdir()
    (failed / "overrides.txt").write_text("model=m2\nloss=a\n")
    JobEnd(state="failed", message=f"ConfigError: {EVIL}\n" + "long " * 100).write(failed)
    (tmp_path / "not a job").mkdir()
    text = check_page(write_sweep(tmp_path))
    assert re.findall(r"<td[^>]*>(?:<a[^>]*>)?(\d+)(?:</a>)?</td><td[^>]*>(done|failed)", text) == [
        ("1", "done"), ("10", "done"), ("0", "done"), ("2", "failed"),
    ]  # fmt: skip
    assert "Best on validation: <b>m1 · a" in text
    assert "ConfigError: &lt;script&gt;" in text
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "1", "2", "10"]
    assert rows[1]["val_dice_mean_slide"] == "0.8"
    assert rows[1]["test_dice_mean_slide_high"] == "0.95"
    assert rows[2]["error"].startswith("ConfigError")
    assert rows[0]["model"] == "m0"


def test_write_sweep_pairs_jobs_with_best_on_validation(tmp_path: Path) -> None:
    """The intervals of the three overlap widely; slide by slide one is always worse and one is not."""
    rng = np.random.default_rng(0)
    best = rng.uniform(0.2, 0.9, 30)
    noise = rng.normal(0, 0.02, 30)
    scores = {"0": best, "1": best - 0.05 + noise / 2, "2": best - 0.001 + noise - noise.mean()}
    scores["3"] = best[:-1] - 0.1
    for job, dice in scores.items():
        mean = {"dice_mean_slide": float(dice.mean()), "dice_mean_slide_interval": [0.4, 0.7]}
        folder = _run(tmp_path / job, _summary(val=mean))
        (folder / "overrides.txt").write_text(f"loss=l{job}\n")
        rows = [
            {"slide_id": f"s{k}", "provider": "p", "isup_grade": 1, "dice": value, "tp_px": 5, "fp_px": 1, "fn_px": 5}
            | {"cancer_outside_tissue_px": 0, "group": f"s{k}"}
            for k, value in enumerate(dice.tolist())
        ]
        _write_csv(folder / "val_slides.csv", rows)
    text = check_page(write_sweep(tmp_path))
    with (tmp_path / "sweep.csv").open(newline="") as file:
        found = {
            row["job"]: [row[f"val_less_best{end}"] for end in ("", "_low", "_high")] for row in csv.DictReader(file)
        }
    assert found["0"] == found["3"] == ["", "", ""], "the best, and one that was scored on other slides"
    for job in "12":
        gap = scores[job] - best
        half = 1.96 * gap.std() / np.sqrt(30)
        expected = [gap.mean(), gap.mean() - half, gap.mean() + half]
        assert [float(value) for value in found[job]] == pytest.approx(expected, abs=0.002)
    assert float(found["1"][2]) < 0 < float(found["2"][2])
    assert "differs from all but 1 of the 2 jobs" in text
    assert "the best</td>" in text
    assert "not scored on the same pixels" in text


def test_write_sweep_repeated_jobs_share_row(tmp_path: Path) -> None:
    scores = {("a", 0): 0.5, ("a", 1): 0.7, ("a", 2): 0.9, ("b", 0): 0.8, ("b", 1): 0.9}
    for job, ((loss, seed), dice) in enumerate(scores.items()):
        folder = _run(tmp_path / str(job), _summary(val={"dice_mean_slide": dice}, test={"dice_mean_slide": dice / 2}))
        (folder / "overrides.txt").write_text(f"loss={loss}\nseed={seed}\n")
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "overrides.txt").write_text("loss=b\nseed=2\n")
    text = check_page(write_sweep(tmp_path))
    with (tmp_path / "repeats.csv").open(newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["loss"], a["jobs"], a["failed"]) == ("a", "3", "0")
    assert (b["loss"], b["jobs"], b["failed"]) == ("b", "2", "1"), "it lacks a seed"
    assert float(a["val_dice_mean_slide_mean"]) == pytest.approx(0.7)
    assert float(a["val_dice_mean_slide_sd"]) == pytest.approx(0.2)
    assert float(a["test_dice_mean_slide_max"]) == pytest.approx(0.45)
    assert "0.700 ± 0.200" in text


def _add_fold(sweep: Path, number: int, loss: str, fold: int, counts: Sequence[tuple[int, int, int]]) -> None:
    """Add a job with a table of validation slides, those of the fold, with these counts of tp, fp and fn."""
    tp, fp, fn = (sum(column) for column in zip(*counts, strict=True))
    val = {"dice": 2 * tp / (2 * tp + fp + fn), "all_tissue_dice": 0.1}
    folder = _run(sweep / str(number), _summary(val=val, test={"dice": 0.1 * fold}))
    (folder / "overrides.txt").write_text(f"loss={loss}\ndata.fold={fold}\n")
    rows = [
        {"slide_id": f"s{fold}{k}", "provider": "p", "isup_grade": 1, "dice": "", "cancer_outside_tissue_px": 0}
        | dict(zip(("tp_px", "fp_px", "fn_px"), row, strict=True))
        for k, row in enumerate(counts)
    ]
    _write_csv(folder / "val_slides.csv", rows)


def test_write_sweep_ranks_choice_over_folds_paired_by_slide(tmp_path: Path) -> None:
    """Fold 1 is easy: its jobs look best, and loss a is better on every slide of both folds."""
    _add_fold(tmp_path, 0, "a", 0, [(30, 20, 50), (0, 10, 0), (10, 5, 5)])
    _add_fold(tmp_path, 1, "a", 1, [(90, 5, 5), (80, 5, 15)])
    _add_fold(tmp_path, 2, "b", 0, [(20, 40, 60), (0, 30, 0), (8, 8, 7)])
    _add_fold(tmp_path, 3, "b", 1, [(85, 10, 10), (78, 10, 17)])
    text = html.unescape(check_page(write_sweep(tmp_path)))
    assert "Best on validation: <b>a</b>" in text
    assert "over the slides of 2 jobs that differ only in seed or fold" in text
    assert "fold 1 is best" not in text, "a fold is no choice"
    with (tmp_path / "repeats.csv").open(newline="") as file:
        a, b = csv.DictReader(file)
    pooled = [2 * 210 / (2 * 210 + 45 + 75), 2 * 191 / (2 * 191 + 98 + 94)]
    assert [float(row["val_all_slides"]) for row in (a, b)] == pytest.approx(pooled)
    assert float(b["val_less_best"]) == pytest.approx(pooled[1] - pooled[0])
    assert a["val_less_best"] == ""
    assert float(b["val_less_best_high"]) < 0
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert "val_less_best" not in next(csv.DictReader(file)), "jobs of two folds are not compared"


def test_write_sweep_choice_without_a_fold_is_not_crowned(tmp_path: Path) -> None:
    _add_fold(tmp_path, 0, "a", 0, [(30, 20, 50)])
    _add_fold(tmp_path, 1, "a", 1, [(90, 5, 5)])
    _add_fold(tmp_path, 2, "b", 1, [(95, 5, 0)])
    text = check_page(write_sweep(tmp_path))
    assert "Best on validation: <b>a</b>" in text


def test_find_choices_missing_counts_folds_that_others_have(tmp_path: Path) -> None:
    """Two choices with two folds each, but not the same ones: only the one with all three is whole."""
    for number, (loss, fold) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2), ("c", 0), ("c", 1), ("c", 2)]):
        _add_fold(tmp_path, number, loss, fold, [(10 if loss == "c" else 90, 5, 5)])
    jobs = read_jobs(tmp_path)
    found = find_choices(tmp_path, jobs, ["loss", "data.fold"])
    assert {choice.values["loss"]: choice.missing for choice in found} == {"c": 0, "a": 1, "b": 1}
    assert found[0].values["loss"] == "c"


def test_write_sweep_compares_means_with_means(tmp_path: Path) -> None:
    """One job has no table of its slides, so the figures of no choice are pooled, and the page says so."""
    for number, (loss, fold) in enumerate([("a", 0), ("a", 1), ("b", 0), ("b", 1)]):
        _add_fold(tmp_path, number, loss, fold, [(30 + 60 * fold - number, 20, 50)])
    (tmp_path / "3" / "val_slides.csv").unlink()
    text = check_page(write_sweep(tmp_path))
    assert "on average over 2 jobs that differ only in seed or fold" in text
    jobs = read_jobs(tmp_path)
    found = find_choices(tmp_path, jobs, ["loss", "data.fold"])
    for choice in found:
        assert choice.is_mean
        assert choice.score == pytest.approx(np.mean([job.find_score("val") or 0.0 for job in choice.jobs]))
    mean = "on average over the jobs"
    assert re.match(rf"1\. a: validation 0\.\d+ {mean}, test 0\.05 {mean} \(", describe_ranking(tmp_path, jobs)[0])
    with (tmp_path / "repeats.csv").open(newline="") as file:
        assert [row["val_all_slides"] for row in csv.DictReader(file)] == ["", ""]


def test_write_sweep_trivial_best_is_said(tmp_path: Path) -> None:
    """The best calls all tissue cancer: it wins on Dice, and is not crowned without saying so."""
    alarms = {"slide_specificity": 0.0, "benign_slides": 4, "all_tissue_dice": 0.6}
    for number, (dice, more) in enumerate([(0.6, alarms), (0.5, {"slide_specificity": 1.0, "benign_slides": 4})]):
        folder = _run(tmp_path / str(number), _summary(val={"dice": dice} | more, test=None))
        (folder / "overrides.txt").write_text(f"loss=l{number}\n")
    text = html.unescape(check_page(write_sweep(tmp_path)))
    assert "The best on validation, on validation: No better than a trivial answer (all tissue)" in text
    assert "False alarms: 4 of 4 cancer-free slides" in text
    assert text.index("False alarms: 4 of 4") < text.index("Best on validation: <b>l0")
    assert "Specificity, benign slides" in text
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [row["beware"] for row in csv.DictReader(file)] == ["no better than trivial, 4 of 4 false alarms", ""]


def test_write_sweep_fold_without_cancer_in_validation_is_kept(tmp_path: Path) -> None:
    """It is judged by its false alarms there, mm² and not Dice; what it found on its test slides counts like others."""
    benign = {"dice_mean_slide": None, "dice": None, "fp_mm2_benign_slides": 3.0}
    parts = [({"dice_mean_slide": 0.6}, 0.4), (benign, 0.8), (benign | {"fp_mm2_benign_slides": 2.0}, 0.3)]
    for fold, (val, dice) in enumerate(parts):
        folder = _run(tmp_path / str(fold), _summary(val=val, test={"dice_mean_slide": dice}))
        (folder / "overrides.txt").write_text(f"data.fold={fold}\n")
    text = check_page(write_sweep(tmp_path))
    with (tmp_path / "repeats.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["jobs"], row["test_dice_mean_slide_jobs"], row["val_dice_mean_slide_jobs"]) == ("3", "3", "1")
    assert float(row["test_dice_mean_slide_mean"]) == pytest.approx(0.5)
    assert float(row["val_fp_mm2_benign_slides_mean"]) == pytest.approx(2.5)
    assert "0.600 to 0.600, of 1" in text
    assert [job.name for job in rank_jobs(read_jobs(tmp_path))] == ["0", "2", "1"]


def test_write_sweep_killed_job_is_not_called_failed(tmp_path: Path) -> None:
    for job in "01":
        (tmp_path / job).mkdir()
        (tmp_path / job / "overrides.txt").write_text(f"a={job}\n")
    JobEnd(state="failed", message="SlideError: x").write(tmp_path / "1")
    write_sweep(tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["lost", "failed"]


def test_agreement_chart_is_bland_altman(run: Path) -> None:
    found, true = [1.0, 2.5, 0.2, 4.0], [1.2, 2.0, 0.0, 3.1]
    rows = [
        {"slide_id": f"s{k}", "provider": "radboud", "dice": 0.5, "tumor_mm2": a, "true_tumor_mm2": b}
        for k, (a, b) in enumerate(zip(found, true, strict=True))
    ]
    text = str(draw_agreement(rows))
    gap = np.array(found) - true
    low, high = (gap.mean() + sign * 1.96 * gap.std(ddof=1) for sign in (-1, 1))
    assert f"mean {gap.mean():+.3f} mm²" in text
    assert f"limits of agreement {low:+.3f} to {high:+.3f} mm² over 4 slides" in text
    heights = [float(y) for y in re.findall(r'circle cx="[0-9.]+" cy="([0-9.]+)"', text)]
    assert np.argsort(heights).tolist() == np.argsort(-gap).tolist(), "the larger the difference, the higher"
    assert draw_agreement([*rows[:2], {"slide_id": "x", "tumor_mm2": "", "true_tumor_mm2": "1"}]) == ""
    _write_csv(run / "test_slides.csv", rows)
    assert "limits of agreement" in check_page(write_run_page(run))


def test_write_sweep_no_jobs_or_failures_only(tmp_path: Path) -> None:
    assert "No job has left anything" in check_page(write_sweep(tmp_path))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "overrides.txt").write_text("a=1\n")
    assert "1, 1 lost" in check_page(write_sweep(tmp_path))


def test_write_pages_missing_folder_raises(tmp_path: Path) -> None:
    for write in (write_run_page, write_inference_page, write_slide_page, write_sweep):
        with pytest.raises(PandaError, match="is not a folder"):
            write(tmp_path / "absent")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.75249, "score", "0.752"), ("0.75", "headline", "0.75"), (None, "score", ""), (float("nan"), "mm2", ""),
        (0.0001, "mm2", "<0.001"), (0.0, "mm2", "0.000"), (1.234, "mm2", "1.23"), (1234.5, "mm2", "1,234"),
        (0.01, "percent", "<0.1"), (12345, "count", "12,345"), (59.6, "seconds", "60 s"),
        (93.1, "seconds", "1 min 33 s"),
        (7000, "seconds", "1 h 57 min"), ("None", "text", ""), (True, "score", ""),
    ],
)  # fmt: skip
def test_show_rounds_to_sensible_digits(value: Any, kind: str, text: str) -> None:
    assert format_value(value, kind) == text


def test_read_picture_is_shrunk_and_flattened_on_white(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((100, 400, 4), np.uint8))
    picture = read_picture(tmp_path / "p.png", 200)
    assert picture is not None
    assert (picture.width, picture.height, picture.wide) == (200, 50, True)
    data = np.frombuffer(base64.b64decode(picture.uri.partition(",")[2]), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.min() > 250
    (tmp_path / "bad.png").write_bytes(b"")
    assert read_picture(tmp_path / "bad.png", 200) is None
    assert read_picture(tmp_path / "absent.png", 200) is None


def test_read_picture_bare_leaves_out_the_legend(tmp_path: Path) -> None:
    sheet = np.full((300, 500, 3), 255, np.uint8)
    sheet[50:250, 30:430] = 90
    for box, size in (((30, 50, 430, 250), (200, 100)), (None, (200, 120)), ((30, 50, 501, 250), (200, 120))):
        write_png(sheet, tmp_path / "p.png", box)
        for bare in (False, True):
            picture = read_picture(tmp_path / "p.png", 200, bare=bare)
            assert picture is not None
            assert (picture.width, picture.height) == (size if bare else (200, 120))


def test_ticks_are_round_and_span_data() -> None:
    assert pick_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for low, high in ((0.0, 0.0), (3.0, 3.0), (-0.3, 0.71), (1e-5, 3e-5), (-2.0, -1.0)):
        found = pick_ticks(low, high)
        assert found[0] <= low + 1e-12
        assert found[-1] >= high - 1e-12
        assert 2 <= len(found) <= 9


def test_charts_of_one_point_or_none() -> None:
    assert draw_lines("t", [Line("a", [], [], "#000")], "x") == ""
    assert "<svg" in draw_lines("t", [Line(EVIL, [1], [0.5], "#000")], "x")
    assert "<script" not in draw_lines(EVIL, [Line(EVIL, [1], [0.5], "#000")], EVIL, mark=(1, EVIL))
    assert draw_bars("t", [], ("a", "")) == ""
    assert "<svg" in draw_bars("t", [Bar("κ below zero", -0.2, -0.5, 0.1)], ("a", ""))


def test_natural_key_sorts_numbers_by_value() -> None:
    assert sorted(["10", "9", "job", "1a"], key=make_natural_key) == ["1a", "9", "10", "job"]
    assert parse_number("inf") is None
    assert parse_number("1e-3") == 0.001


def test_splits_table_undefined_figure_differs_from_unrecorded() -> None:
    given = {"task": "grading", "val": {"auroc": 0.5}, "test": {"auroc": None, "attention_auroc": 0.9}}
    table = make_splits_table(make_summary(given))
    cells = {row[0].text: row[1:] for row in table.rows}
    auroc, attention = (cells[name_figure(key)] for key in ("auroc", "attention_auroc"))
    assert [cell.why for cell in auroc] == ["", "needs slides with and without cancer"]
    assert [cell.why for cell in attention] == ["was not recorded", ""], "nothing is said of a figure that is there"
