"""Pages, comparisons and sweeps of runs that learned a column of the table."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

from panda.data.targets import ISUP, TargetSpec
from panda.errors import ManifestError
from panda.inference.grading_metrics import summarize_grades
from panda.inference.target_figures import summarize_target
from panda.report.compare import compare
from panda.report.folds import compute_figures, read_folds
from panda.report.headline import format_headline
from panda.report.run_page import write_run_page
from panda.report.run_summary import GradingSummary, parse_summary
from panda.report.sweep_jobs import rank_jobs, read_jobs
from panda.report.sweep_page import write_sweep
from panda.report.target_charts import compute_kaplan_meier, draw_predictions
from panda.report.tested_run import check_comparable
from panda.tables import read_output_table, write_table
from tests.drawn_scores import draw_graded_slide
from tests.summaries import fill_summary
from tests.test_report_pages import check_page
from tests.test_target_figures import KI67, SCANNER, STAGE, SURVIVAL, draw_slide
from tests.test_target_metrics import count_pairs

AGE = TargetSpec(name="age", kind="regression", columns=("age",))


def make_run(folder: Path, target: TargetSpec, slides: range = range(20), **changes: float) -> Path:
    """Write the folder of a run whose validation and test are the same drawn slides."""
    folder.mkdir(parents=True)
    if target.is_grade:
        graded = [draw_graded_slide(number) for number in slides]
        figures = summarize_grades(graded, 6, 0).model_dump(mode="json")
    else:
        graded = [draw_slide(number, target) for number in slides]
        figures = summarize_target(graded, target, 0).model_dump(mode="json")
    content = fill_summary({"task": "grading", "name": folder.name})
    content["target"] = target.name if target.is_grade else target.model_dump(mode="json")
    content["val"] = figures | changes
    (folder / "summary.json").write_text(json.dumps(content | ({} if target.is_grade else {"test": figures})))
    (folder / "overrides.txt").write_text(f"task.target={target.name}\noptim.lr={folder.name}\n")
    for split in ("val", "test"):
        write_table(folder / f"{split}_slides.csv", [slide.to_row(attention=False) for slide in graded])
    return folder


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            STAGE,
            (
                f"<dt>Learned</dt><dd>{STAGE.name} (ordinal of ",
                "Quadratic weighted κ",
                "Balanced accuracy",
                "low",
                "Given and predicted",
            ),
        ),
        (SCANNER, ("AUROC, a class against the others", "Cohen", "Slides with a wrong class come first")),
        (KI67, ("R²", "Mean absolute error", "ki67, predicted and given", "furthest from the given number")),
        (
            SURVIVAL,
            (
                f"(survival of {SURVIVAL.columns[0]} and ",
                "Concordance index",
                "Kaplan and Meier",
                "highest predicted risk come first",
                "months",
            ),
        ),
    ],
)
def test_run_page_has_the_figures_of_its_kind_and_no_grade(
    tmp_path: Path, target: TargetSpec, words: tuple[str, ...]
) -> None:
    text = check_page(write_run_page(make_run(tmp_path / "run", target)))
    assert all(word in text for word in words)
    assert not re.search(r"ISUP|of cancer|Dice", text)


def test_headline_names_the_column(tmp_path: Path) -> None:
    summary, _ = parse_summary(json.loads((make_run(tmp_path / "run", KI67) / "summary.json").read_text()))
    assert summary is not None
    assert re.fullmatch(
        r"grading of ki67 \(test on 20 slides\): R² 0\.\d+ \(mean for all: 0.00\), mean .* error [\d.]+ .*",
        format_headline(summary),
    )


def test_summary_figures_of_another_kind_are_refused(tmp_path: Path) -> None:
    content = json.loads((make_run(tmp_path / "run", KI67) / "summary.json").read_text())
    content["val"]["concordance"] = 2.0
    del content["val"]["mae"]
    _, faults = parse_summary(content)
    assert any(fault.startswith("val") and "concordance is 2.0" in fault for fault in faults)


def test_compare_numbers_and_risks_pair_slides(tmp_path: Path) -> None:
    for target, score in ((KI67, lambda r: r2_score(r[:, 0], r[:, -1])), (SURVIVAL, lambda r: count_pairs(*r.T))):
        first = make_run(tmp_path / target.name / "a", target)
        second = make_run(tmp_path / target.name / "b", target)
        rows = read_output_table(second / "test_slides.csv")
        for row in rows:
            row["predicted"] = str(-float(row["predicted"]))
        write_table(second / "test_slides.csv", rows)
        page = compare(first, second)
        check_page(page)
        found = read_output_table(page.parent / "compare.csv")[0]
        graded = [draw_slide(number, target) for number in range(20)]
        numbers = np.array([[*slide.values, slide.grade.predicted] for slide in graded])
        turned = numbers * np.array([*[1] * len(target.columns), -1])
        assert float(found["a"]) == pytest.approx(score(numbers))
        assert float(found["difference"]) == pytest.approx(score(turned) - score(numbers))


def test_compare_other_target_or_classes_is_refused(tmp_path: Path) -> None:
    folders = make_run(tmp_path / "ki67", KI67), make_run(tmp_path / "age", AGE)
    with pytest.raises(ManifestError, match=r"target is ki67 \(regression of ki67\) .* and age \(regression of age\)"):
        compare(*folders)
    turned = STAGE.model_copy(update={"classes": ("high", "mid", "low")})
    summaries = [parse_summary(json.loads((make_run(tmp_path / str(k), target) / "summary.json").read_text()))[0]
                 for k, target in enumerate((STAGE, turned))]  # fmt: skip
    one, other = summaries
    assert isinstance(one, GradingSummary)
    assert isinstance(other, GradingSummary)
    with pytest.raises(ManifestError, match=r"ordinal of stage \[low,mid,high\]"):
        check_comparable(folders, (one, other))


def test_folds_pool_the_slides_of_a_column(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(k), SCANNER, range(20 * k, 20 * k + 20)) for k in range(2)]
    found = {figure.name: figure for figure in compute_figures(*read_folds(folders))}
    graded = [draw_slide(number, SCANNER) for number in range(40)]
    expected = balanced_accuracy_score([s.label for s in graded], [s.grade.predicted for s in graded])
    assert found["balanced_accuracy"].value == pytest.approx(expected)
    assert found["balanced_accuracy"].slides == 40


def test_sweep_ranks_errors_upwards_and_never_mixes_targets(tmp_path: Path) -> None:
    make_run(tmp_path / "0", KI67, r2=0.3)
    make_run(tmp_path / "1", KI67, r2=0.9)
    make_run(tmp_path / "2", AGE, r2=0.99)
    make_run(tmp_path / "3", ISUP)
    jobs = rank_jobs(read_jobs(tmp_path))
    order = [job.name for job in jobs]
    assert order.index("1") < order.index("0")
    assert {job.subject for job in jobs} == {"isup", "ki67 (regression of ki67)", "age (regression of age)"}
    text = check_page(write_sweep(tmp_path))
    assert "Best on validation" not in text
    assert text.count(">the best<") == 3
    assert "R², ki67 (regression of ki67)" in text


def test_sweep_of_one_target_has_a_best_job(tmp_path: Path) -> None:
    make_run(tmp_path / "0", SURVIVAL, concordance=0.5)
    make_run(tmp_path / "1", SURVIVAL, concordance=0.9)
    text = check_page(write_sweep(tmp_path))
    assert re.search(r"Best on validation: <b>.*lr 1", text)


def test_kaplan_meier_matches_a_known_curve() -> None:
    """Six slides: events at 1, 3 and 3, censored at 2, 3 and 5."""
    time, event = np.array([1.0, 2, 3, 3, 3, 5]), np.array([1, 0, 1, 1, 0, 0])
    xs, ys = compute_kaplan_meier(time, event)
    assert xs == [0, 1, 1, 3, 3, 5]
    assert ys == pytest.approx([1, 1, 5 / 6, 5 / 6, 5 / 12, 5 / 12])


@pytest.mark.parametrize("predicted", [["0.5", "0.5"], ["0.5", ""]])
def test_draw_predictions_of_equal_or_single_risks_is_empty(predicted: list[str]) -> None:
    rows = [{"slide_id": "a", "time": "1", "event": "1", "predicted": cell} for cell in predicted]
    assert draw_predictions(rows, SURVIVAL) == ""
    assert draw_predictions(rows, STAGE) == ""
