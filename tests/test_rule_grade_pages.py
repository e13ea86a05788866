"""The grade by areas in the tables and on the pages of an inference, alone and beside that of a grading network."""

import html
import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.inference.slide_result import SlideResult
from panda.report.grade_notes import describe_disagreements, lay_out_both_grades
from panda.tables import read_output_table
from panda.tasks.gleason_search import GleasonRuleChoice, GleasonRuleSettings
from panda.wsi.classes import ClassSet, find_classes
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.test_infer import CONF, draw

AUTO = GleasonRuleSettings()
MERGED = ClassSet(names=("benign", "low", "high"), patterns={"low": (3,), "high": (4, 5)})


def run(folder: Path, classes: ClassSet, *overrides: str, settings: GleasonRuleSettings = AUTO) -> Path:
    """Map two slides with an untrained network of these classes, and return the output."""
    for name in ("a", "b"):
        draw(folder / "slides" / f"{name}.tiff")
    rule = GleasonRuleChoice.from_settings(settings, "3 of 5 validation slides have a grade")
    checkpoint = segmentation_checkpoint(
        folder / "best.ckpt", classes=classes, gleason_rule=rule.model_dump(mode="json")
    )
    out = folder / "out"
    given = (f"checkpoint={checkpoint}", f"slides={folder / 'slides'}", f"output={out}", f"run_dir={out}")
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "infer", overrides=[*given, "engine.device=cpu", "engine.post_workers=0", "threshold=0.6", *overrides]
        )
    infer(cfg)
    return out


def read_page(path: Path) -> str:
    """Return the text of a page without its tags."""
    body = re.sub(r"<(script|style).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_infer_gives_grade_by_areas_beside_network(tmp_path: Path) -> None:
    grader = grading_checkpoint(tmp_path / "grade.ckpt")
    out = run(tmp_path, find_classes("gleason"), f"grading_checkpoint={grader}")
    rows = read_output_table(out / "quantification.csv")
    for row in rows:
        result = SlideResult.read(out / row["slide_id"])
        found = result.rule_grade
        assert found is not None
        assert found.isup_interval is not None
        assert found.band == (0.5, 0.7)  # the threshold was given, so the band is 0.1 on either side
        assert (row["rule_score"], row["rule_isup"]) == (found.score, str(found.isup))
        assert (row["rule_isup_low"], row["rule_isup_high"]) == tuple(map(str, found.isup_interval))
        page = read_page(out / row["slide_id"] / "slide.html")
        assert "Gleason by areas" in page
        assert f"{found.score} ISUP {found.isup}" in page
        assert "at thresholds 0.50 to 0.70" in page
        assert result.grade is not None
        assert ("The two grades differ" in page) == (result.grade.predicted != found.isup)
    page = read_page(out / "report.html")
    differ = sum(row["rule_isup"] != row["isup_predicted"] for row in rows)
    assert f"differ on {differ} of 2 slides" in page
    assert "Grades by areas and by the network" in page
    assert "default ones, because they were not searched: 3 of 5 validation slides have a grade." in page
    assert "A pattern beside the primary one counts from 0.02 mm² and 2 % of the tumour" in page


def test_infer_merged_patterns_say_why_there_is_no_score(tmp_path: Path) -> None:
    out = run(tmp_path, MERGED)
    (row, _) = read_output_table(out / "quantification.csv")
    assert (row["rule_score"], row["rule_isup"], row["rule_isup_low"]) == ("", "", "")
    page = read_page(out / "a" / "slide.html")
    assert "high holds 4 and 5" in page
    assert "the areas of its patterns give no Gleason score" in read_page(out / "report.html")
    stored = json.loads((out / "a" / "quantification.json").read_text())
    assert stored["rule_grade"]["score"] is None


def test_infer_other_rule_is_other_provenance(tmp_path: Path) -> None:
    found = []
    for limit in (0.02, 0.5):
        out = run(tmp_path / str(limit), find_classes("gleason"), settings=GleasonRuleSettings(min_area_mm2=limit))
        found.append(SlideResult.read(out / "a").provenance)
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].segmentation["network"] == found[1].segmentation["network"]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("1", "1"), ("2", "2")], "differ on 0 of 2 slides."),
        ([("1", "2"), ("2", "2"), ("0", "5")], "differ on 2 of 3 slides: s2, s0."),
        ([("", "2"), ("1", "")], ""),
    ],
)
def test_describe_disagreements_counts_and_names(pairs: list[tuple[str, str]], expected: str) -> None:
    rows = [{"slide_id": f"s{k}", "rule_isup": a, "isup_predicted": b} for k, (a, b) in enumerate(pairs)]
    found = describe_disagreements(rows)
    assert found.endswith(expected)
    assert bool(found) == bool(expected)
    table = lay_out_both_grades(rows)
    assert (table is None) == (not expected)
    cancer = [{"slide_id": "s", "rule_isup": "3", "cancer_predicted": "1"}]
    assert "0 of 1" in describe_disagreements(cancer)
    assert lay_out_both_grades(cancer) is None
