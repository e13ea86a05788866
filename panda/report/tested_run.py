"""Read a folder with scored test slides: a finished training, or an evaluation by `infer.py labels=…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from panda.errors import ManifestError
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.page import require_folder
from panda.report.run_folder import find_subfolder, read_config, read_text
from panda.report.run_summary import (
    EvaluationSummary,
    GradingSummary,
    RunSummary,
    SegmentationSummary,
    read_json_summary,
)
from panda.report.sweep_jobs import align_choices, parse_overrides

_RESOLUTION = ("level", "mpp", "mpp_override")
Tested = RunSummary | EvaluationSummary


def read_tested(folder: Path) -> Tested:
    """Read the summary of a finished run or an evaluation that scored its test slides; refuse another folder."""
    require_folder(folder)
    summary, fault = read_json_summary(folder)
    if summary is None:
        raise ManifestError(f"{folder} holds no finished run or evaluation: {fault}")
    if summary.test is None:
        raise ManifestError(f"{folder} scored no test slides: give a run with test_slides=true and data.test_fraction")
    return summary


def check_comparable(folders: tuple[Path, Path], summaries: tuple[Tested, Tested]) -> None:
    """Refuse two runs whose tasks, targets or resolutions differ, because their figures mean different things."""
    learned = [_describe_learned(summary) for summary in summaries]
    for key in learned[0]:
        was, is_ = (values[key] for values in learned)
        if was != is_:
            raise ManifestError(f"{key} is {was} in {folders[0]} and {is_} in {folders[1]}: give two runs of one {key}")
    a, b = (find_resolution(*side) for side in zip(folders, summaries, strict=True))
    for key, before in a.items():
        if before != b[key]:
            raise ManifestError(
                f"data.{key} is {before} in {folders[0]} and {b[key]} in {folders[1]}: pixels are scored at the "
                "resolution of the run, and those of two resolutions cannot be compared or summed"
            )


def _describe_learned(summary: Tested) -> dict[str, str]:
    """Return task and target in words. An evaluation is of a segmentation."""
    target = summary.target.describe_source() if isinstance(summary, GradingSummary) else ""
    return {"task": "grading" if isinstance(summary, GradingSummary) else "segmentation", "target": target}


def find_resolution(folder: Path, summary: Tested) -> dict[str, JsonValue]:
    """Return the resolution at which pixels were scored; empty for a grading."""
    if isinstance(summary, GradingSummary):
        return {}
    if isinstance(summary, SegmentationSummary):
        return {key: summary.data.settings.get(key) for key in _RESOLUTION}
    try:
        made = InferenceSummary.read(folder)
    except FileNotFoundError as error:
        raise ManifestError(f"{folder / INFERENCE_FILE} is missing: run the inference again") from error
    return {"level": made.resolution.level, "mpp": made.resolution.mpp, "mpp_override": made.mpp_override}


def read_choices(folders: Sequence[Path], summaries: Sequence[Tested]) -> list[dict[str, str]]:
    """Return the choices of runs, see `align_choices`.

    Those of an evaluation are of the run of its checkpoint, with its own settings.
    """
    homes = [
        Path(summary.checkpoint).parent.parent if isinstance(summary, EvaluationSummary) else folder
        for folder, summary in zip(folders, summaries, strict=True)
    ]
    typed = [parse_overrides(read_text(home / "overrides.txt")) for home in homes]
    found = align_choices(typed, [read_config(home / "config.yaml") for home in homes])
    for choices, summary in zip(found, summaries, strict=True):
        if isinstance(summary, EvaluationSummary):
            choices |= {"checkpoint": summary.checkpoint, "threshold": f"{summary.threshold:g}"}
    return found


def find_slide_folder(folder: Path, slide_id: str) -> Path | None:
    """Return the folder of a slide's map; None without one."""
    return find_subfolder(folder / "slides", slide_id) or find_subfolder(folder, slide_id)
