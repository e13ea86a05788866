"""Two runs on the same slides: identical ones, planted differences, and pairs that are refused."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon
from sklearn.metrics import cohen_kappa_score

from panda.errors import ManifestError, PandaError
from panda.report.compare import _name_runs, compare, compare_runs, main
from panda.report.effects import ScoredJob, find_effects
from panda.report.paired import compute_differences, compute_signed_rank_p
from panda.report.tested_run import read_choices, read_tested
from panda.tables import write_table
from panda.tasks.grade_metrics import compare_grades
from tests.summaries import fill_summary
from tests.test_map_sweep import add_job
from tests.test_report_pages import EVIL, check_page

Rows = list[dict[str, Any]]


def make_rows(n: int = 24, shift: float = 0.0, groups: int | None = None, seed: int = 0) -> Rows:
    """Slides with 1,000 px of cancer each, of which a part is found, `shift` more than else; the last is benign."""
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for k in range(n):
        tp = 0 if k == n - 1 else int(1000 * (0.5 + 0.3 * rng.random() + shift))
        fn = 0 if k == n - 1 else 1000 - tp
        rows.append(
            {
                "slide_id": f"s{k:02}",
                "provider": "radboud" if k % 3 else "karolinska",
                "isup_grade": k % 6,
                "dice": 2 * tp / (2 * tp + 100 + fn) if tp else "",
                "fp_mm2": 0.5 - shift,
                "fp_px": 100,
                "tp_px": tp,
                "fn_px": fn,
                "cancer_outside_tissue_px": 0,
                "tumor_mm2": 1.0,
                "true_tumor_mm2": 1.0,
                "group": f"g{k % groups}" if groups else f"s{k:02}",
            }
        )
    return rows


def make_run(folder: Path, rows: Rows, overlays: bool = False, **summary: Any) -> Path:
    folder.mkdir(parents=True)
    with (folder / "test_slides.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = {"settings": {"level": 1, "mpp": None}}
    test = {"qwk": 0.5} if summary.get("task") == "grading" else {"dice": 0.5}
    content = {"task": "segmentation", "test": test, "data": data} | summary
    (folder / "summary.json").write_text(json.dumps(fill_summary(content)))
    (folder / "overrides.txt").write_text(f"name={folder.name}\nmodel={folder.name}\nseed=0\n")
    for row in rows if overlays else []:
        (folder / "slides" / row["slide_id"]).mkdir(parents=True)
        cv2.imwrite(str(folder / "slides" / row["slide_id"] / "overlay.png"), np.full((40, 60, 3), 200, np.uint8))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        ("runs/x", "runs/y", ("x", "y")),
        ("one/segmentation/x", "two/segmentation/x", ("one x", "two x")),
        ("runs/sweep-a/0", "runs/sweep-b/0", ("sweep-a job 0", "sweep-b job 0")),
        ("runs/x", "runs/old/x", ("runs x", "old x")),
        ("runs/x", "runs/x", ("first x", "second x")),
    ],
)
def test_compare_runs_of_one_name_get_names_that_differ(a: str, b: str, names: tuple[str, str]) -> None:
    assert _name_runs(Path("/", a), Path("/", b)) == names


def test_compare_run_with_itself_finds_no_difference(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", make_rows()), make_run(tmp_path / "b", make_rows())
    text = check_page(compare(a, b))
    assert "these slides show no difference between the two" in text
    for row in table(tmp_path / "compare-a-b" / "compare.csv"):
        ends = ("difference", "low", "high") if int(row["groups"]) > 1 else ("difference",)
        assert {float(row[key]) for key in ends} == {0}
        assert row["p"] in ("", "1.0")
    assert all(row["dice_difference"] in ("", "0.0") for row in table(tmp_path / "compare-a-b" / "compare_slides.csv"))


def test_compare_planted_difference_is_found_with_size_and_side(tmp_path: Path) -> None:
    a, b = (
        make_run(tmp_path / "a", make_rows(), overlays=True),
        make_run(tmp_path / "b", make_rows(shift=0.1), overlays=True),
    )
    text = check_page(compare(a, b, tmp_path / "out" / "here"))
    assert "b is better on slides like these" in text
    assert "Where b is better" in text
    assert "Where a is better" not in text
    assert '<td data-sort="model">model</td>' in text
    assert text.count("data:image/jpeg") == 8
    figures = {(row["figure"], row["provider"]): row for row in table(tmp_path / "out" / "here" / "compare.csv")}
    gaps = [
        float(y["dice"]) - float(x["dice"]) for x, y in zip(make_rows(), make_rows(shift=0.1), strict=True) if x["dice"]
    ]
    mean = figures["dice_mean_slide", "all"]
    assert float(mean["difference"]) == pytest.approx(np.mean(gaps))
    assert float(mean["low"]) > 0.04
    assert float(mean["p"]) == pytest.approx(wilcoxon(gaps).pvalue)
    assert (mean["slides"], figures["dice_mean_slide", "karolinska"]["slides"]) == ("23", "8")
    pooled = [
        sum(row[key] for row in rows) for rows in (make_rows(), make_rows(shift=0.1)) for key in ("tp_px", "fn_px")
    ]
    dice = [2 * tp / (2 * tp + 2400 + fn) for tp, fn in (pooled[:2], pooled[2:])]
    assert float(figures["dice", "all"]["difference"]) == pytest.approx(dice[1] - dice[0])
    benign = figures["fp_mm2_benign_slides", "all"]
    assert benign["slides"] == "1"
    assert float(benign["difference"]) == pytest.approx(-0.1)
    back = compare(b, a, tmp_path / "back").read_text()
    assert "b is better" in back


def test_compare_verdict_is_by_figure_that_ranks_sweeps(tmp_path: Path) -> None:
    """Run b finds more of each cancer, at the price of false alarms on benign slides, which only pooled Dice counts."""
    one = [row | ({"tp_px": 0, "fn_px": 0, "dice": ""} if k % 3 else {}) for k, row in enumerate(make_rows())]
    other = [
        row | ({"tp_px": 0, "fn_px": 0, "dice": "", "fp_px": 1000} if k % 3 else {})
        for k, row in enumerate(make_rows(shift=0.1))
    ]
    found = compare_runs(make_run(tmp_path / "a", one), make_run(tmp_path / "b", other))
    lead, beside = found.verdict.split(". a is better on slides like these. ")
    assert lead.startswith("Dice, all pixels pooled: b less a is -0.")
    assert beside.startswith("Dice, mean over slides: +0.")
    figures = table(tmp_path / "compare-a-b" / "compare.csv")
    assert [row["figure"] for row in figures[:2]] == ["dice", "dice_mean_slide"]
    assert lead.endswith(f"interval {float(figures[0]['low']):+.3f} to {float(figures[0]['high']):+.3f}")


def test_compare_provider_without_labelled_cancer_has_no_dice(tmp_path: Path) -> None:
    rows = [row | ({"tp_px": 0, "fn_px": 0, "dice": ""} if row["provider"] == "radboud" else {}) for row in make_rows()]
    compare(make_run(tmp_path / "a", rows), make_run(tmp_path / "b", rows))
    dice = {row["provider"]: row for row in table(tmp_path / "compare-a-b" / "compare.csv") if row["figure"] == "dice"}
    assert dice["radboud"]["a"] == dice["radboud"]["b"] == dice["radboud"]["difference"] == ""
    assert float(dice["karolinska"]["a"]) > float(dice["all"]["a"]) > 0


@pytest.mark.parametrize(
    ("groups", "verdict"),
    [
        (4, "an interval needs at least 5 groups of slides, there are 4"),
        (5, "b looks better, but 5 groups are too few"),
    ],
)
def test_compare_few_groups_is_not_sure(tmp_path: Path, groups: int, verdict: str) -> None:
    rows = [make_rows(groups=groups), make_rows(groups=groups, shift=0.1)]
    a, b = (make_run(tmp_path / name, found) for name, found in zip("ab", rows, strict=True))
    assert verdict in compare(a, b).read_text()


def test_compute_differences_interval_matches_scipy_bootstrap() -> None:
    rng = np.random.default_rng(3)
    pairs: Any = [
        ({"provider": "p", "dice": str(a)}, {"provider": "p", "dice": str(a + gap)})
        for a, gap in zip(rng.random(40), rng.normal(0.05, 0.1, 40), strict=True)
    ]
    gaps = np.array([float(b["dice"]) - float(a["dice"]) for a, b in pairs])
    (found,) = compute_differences(pairs, [str(k) for k in range(40)], "segmentation")[:1]
    theirs = bootstrap((gaps,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert found.difference == pytest.approx(gaps.mean())


def test_compute_signed_rank_p_pairs_groups() -> None:
    gaps, groups = np.array([0.1, 0.3, -0.2, 0.4, 0.5]), np.array(["a", "a", "b", "c", "d"])
    assert compute_signed_rank_p(gaps, groups) == wilcoxon([0.2, -0.2, 0.4, 0.5]).pvalue
    assert compute_signed_rank_p(gaps[:3], groups[:3]) is None
    assert compute_signed_rank_p(np.zeros(5), groups) == 1
    pairs: Any = [({"dice": "0.5"}, {"dice": str(0.5 + gap)}) for gap in [0.1] * 20 + [-0.1] * 20]
    wide, narrow = (
        compute_differences(pairs, names, "segmentation")[0].interval
        for names in ([f"g{k // 8}" for k in range(40)], [str(k) for k in range(40)])
    )
    assert wide is not None
    assert narrow is not None
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("classes", [2, 6])
def test_compare_grades_kappa_matches_scikit_learn(classes: int) -> None:
    pairs = np.random.default_rng(classes).integers(0, classes, (50, 2)).astype(float)
    kappa, accuracy = compare_grades(pairs)
    assert kappa == pytest.approx(cohen_kappa_score(*pairs.T, weights="quadratic"))
    assert accuracy == (pairs[:, 0] == pairs[:, 1]).mean()
    assert np.isnan(compare_grades(np.full((5, 2), 3.0))[0])
    assert np.isnan(compare_grades(np.empty((0, 2)))).all()


def test_compare_graders_reports_kappa(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 60)
    guesses = [np.clip(labels + rng.integers(-wrong, wrong + 1, 60), 0, 5) for wrong in (3, 1)]
    for name, guess in zip("ab", guesses, strict=True):
        rows = [
            {"slide_id": f"s{k}", "provider": "p", "isup_grade": t, "label": t, "predicted": g, "group": f"s{k}"}
            | {"confidence": (k + 1) / 60}
            for k, (t, g) in enumerate(zip(labels.tolist(), guess.tolist(), strict=True))
        ]
        make_run(tmp_path / name, rows, task="grading", target="isup", test={"qwk": 0.5})
    text = check_page(compare(tmp_path / "a", tmp_path / "b"))
    assert "b is better" in text
    kappa, _, ece, area, *_ = table(tmp_path / "compare-a-b" / "compare.csv")
    assert (ece["figure"], area["figure"]) == ("ece", "aurc")
    wrong = (guesses[0] != labels)[::-1]
    assert float(area["a"]) == pytest.approx((wrong.cumsum() / np.arange(1, 61)).mean())
    ours = [cohen_kappa_score(labels, guess, weights="quadratic") for guess in guesses]
    assert [float(kappa[key]) for key in "ab"] == pytest.approx(ours)


@pytest.mark.parametrize(
    ("encoder", "end", "differ"),
    [
        ("resnet18", "", ["seed"]),
        ("resnet50", "", ["model.encoder_name", "seed"]),
        ("resnet18", "x: [", ["model", "model.encoder_name", "optim.lr", "seed"]),  # it cannot be read
    ],
)
def test_read_choices_equal_in_configuration_are_equal(
    tmp_path: Path, encoder: str, end: str, differ: list[str]
) -> None:
    words = "experiment=demo\nmodel=unet\nmodel.encoder_name=resnet18\noptim.lr=1e-3\nseed=0", "experiment=demo\nseed=1"
    config = "model: {{architecture: unet, encoder_name: {}}}\noptim: {{lr: 0.001}}\nseed: {}\n{}"
    folders = [make_run(tmp_path / name, make_rows(n=3)) for name in "ab"]
    for folder, typed, values in zip(folders, words, (("resnet18", 0, ""), (encoder, 1, end)), strict=True):
        (folder / "overrides.txt").write_text(typed)
        (folder / "config.yaml").write_text(config.format(*values))
    one, other = read_choices(folders, [read_tested(folder) for folder in folders])
    assert [key for key in one if one[key] != other.get(key)] == differ


def make_evaluation(folder: Path, threshold: float, rows: Rows, seen: int) -> Path:
    """Write the output of an inference whose slides have labels; the training used `seen` of them."""
    output = add_job(folder, threshold, rows, dice=0.5, seen=seen)
    write_table(output / "test_slides.csv", rows)
    return output


def test_compare_evaluations_of_trained_slides_judges_nothing(tmp_path: Path) -> None:
    a = make_evaluation(tmp_path, 0.3, make_rows(), seen=0)
    b = make_evaluation(tmp_path, 0.5, make_rows(shift=0.1), seen=19)
    for pair in ((a, b), (b, a)):
        found = compare_runs(*pair)
        assert "is better on slides like these" not in found.verdict
        assert (
            "These slides do not show which of the two is better on new slides: "
            "19 of 24 slides used in the training of threshold=0.5." in found.verdict
        )
        warning = "19 of 24 slides with labels were used in the training: these figures are too good"
        assert f"<p>threshold=0.5: {warning}" in check_page(found.page)
    write_table(b / "test_slides.csv", make_rows()[1:])
    with pytest.raises(ManifestError, match=r"Evaluations: map the same slides with .*infer.* slides=… labels=…\. "):
        compare(a, b)


def change_row(rows: Rows, k: int, **values: Any) -> Rows:
    return [row | values if at == k else row for at, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "summary", "said"),
    [
        (make_rows()[1:], {}, r"the slides differ: 1 only in a, 0 only in b \(s00\).*data.splits=.*failures.csv"),
        (
            change_row(make_rows(), 2, tp_px=1),
            {},
            "truth differs: for s02, its labelled cancer is 1000.0 in a",
        ),
        (change_row(make_rows(), 2, isup_grade=5), {}, "for s02, its grade is 2.0 in a and 5.0 in b"),
        (change_row(make_rows(), 2, cancer_outside_tissue_px=9), {}, "labelled cancer outside its tissue"),
        (make_rows(), {"data": {"settings": {"level": 0, "mpp": None}}}, "data.level is 1 in .*a and 0 in .*b"),
        (make_rows(), {"task": "grading"}, "task is segmentation in .*a and grading in .*b"),
        (make_rows(), {"test": None}, "b scored no test slides"),
        (
            [{k: v for k, v in row.items() if k != "tp_px"} for row in make_rows()],
            {},
            "b: its table of slides has no tp_px",
        ),
    ],
)
def test_compare_unpaired_runs_raise(tmp_path: Path, rows: Rows, summary: dict[str, Any], said: str) -> None:
    a, b = make_run(tmp_path / "a", make_rows()), make_run(tmp_path / "b", rows, **summary)
    with pytest.raises(ManifestError, match=said):
        compare(a, b)
    assert not list(tmp_path.glob("compare*"))


def test_compare_table_without_slide_id_raises(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, make_rows(n=3)) for name in "ab")
    table = b / "test_slides.csv"
    table.write_text(table.read_text().replace("slide_id", "slide_ie", 1))
    with pytest.raises(ManifestError, match=r"b.test_slides\.csv, row 2: slide_id is None"):
        compare(a, b)


def test_main_prints_page_or_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "sweep-x" / "0", make_rows()), make_run(tmp_path / "sweep-x" / "1", make_rows(shift=0.1))
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    verdict, page = out.splitlines()
    assert "job 1 is better on slides like these." in verdict
    assert page == f"comparison: {tmp_path / 'sweep-x' / 'compare-job-0-job-1' / 'compare.html'}"
    (b / "summary.json").unlink()
    assert main([str(a), str(b)]) == 1
    assert "1 holds no finished run or evaluation: summary.json is not in the folder" in capsys.readouterr().err
    with pytest.raises(PandaError, match="is not a folder"):
        compare(a, tmp_path / "absent")


def test_compare_escapes_names(tmp_path: Path) -> None:
    rows = change_row(make_rows(), 0, slide_id=EVIL, provider=EVIL)
    other = change_row(make_rows(shift=0.1), 0, slide_id=EVIL, provider=EVIL)
    a, b = make_run(tmp_path / f"a{EVIL}", rows), make_run(tmp_path / "b", other)
    assert "<script>alert" not in check_page(compare(a, b, tmp_path / "out"))


def test_find_effects_separates_choices() -> None:
    """Of patch 64, 0.2 better than 128 in everything, only the worse model was tried with a third value."""
    jobs = [
        ScoredJob({"patch": patch, "model": model}, base + (0.2 if patch == "64" else 0.0), "")
        for model, base in (("unet", 0.5), ("fpn", 0.45))
        for patch in ("128", "64")
    ]
    patch, model = find_effects(jobs, ["model", "patch"])
    assert (patch.choice, patch.values) == ("patch", ["64", "128"])
    assert patch.span == pytest.approx(0.2)
    assert (patch.values[patch.best], patch.wins, patch.comparisons) == ("64", 2, 2)
    assert model.span == pytest.approx(0.05)
    assert model.compute_medians() == pytest.approx([0.55, 0.6])
    # a value that differs in something else as well is laid to neither
    assert find_effects([jobs[0], ScoredJob({"patch": "256", "model": "fpn"}, 0.9, "")], ["model", "patch"]) == []
