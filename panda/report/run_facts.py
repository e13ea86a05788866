"""Assemble the heads of the pages of runs, sweeps and comparisons from `summary.json` and `config.yaml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panda.choices import name_tool
from panda.report.head import PageHead
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.page_facts import (
    Command,
    Fact,
    describe_inference,
    describe_resolution,
    format_date,
    keep_known,
    list_network,
    write_command,
    write_own_command,
)
from panda.report.run_folder import read_config, read_text, try_read
from panda.report.run_summary import EvaluationSummary, GradingSummary, RunSummary, SegmentationSummary
from panda.report.sweep_jobs import REPEATS, Job
from panda.report.table import format_value
from panda.report.tested_run import Tested

_CHOSEN = ("model", "loss", "experiment", "task")
"""Keys that can change what `_list_choices` returns."""
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def _find(content: Mapping[str, Any], *keys: str) -> Any:
    """Return the value at a path of keys, None if it is absent."""
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def write_sweep_command(name: str, folder: Path) -> str:
    """Return the command that began a sweep; empty if it is unknown."""
    typed = _find(read_config(folder / "multirun.yaml"), "hydra", "overrides", "task")
    return write_command(name, ["-m", *map(str, typed)]) if isinstance(typed, list) else ""


def describe_run(run_dir: Path, summary: RunSummary | None) -> PageHead:
    """Return the head of the page of a training run."""
    config = read_config(run_dir / "config.yaml")
    task = str(summary.task if summary else _find(config, "task", "name") or "")
    facts = _list_choices(config)
    facts += _list_summary(summary) if summary else [("Data", str(_find(config, "data", "root") or ""))]
    overrides = summary.overrides if summary else None
    if overrides is None and (run_dir / "overrides.txt").is_file():
        overrides = read_text(run_dir / "overrides.txt").splitlines()
    name = summary.name if summary else run_dir.name
    return PageHead(
        f"Training run · {task}" if task else "Training run",
        name,
        facts,
        keep_known([("Trained by", write_command("train", overrides)), *_list_next(run_dir, config, summary)]),
    )


def _list_choices(config: Mapping[str, Any]) -> list[Fact]:
    """Return the facts of a run that its configuration alone says."""
    model = config.get("model")
    return [
        *(list_network(model) if isinstance(model, Mapping) else ()),
        ("Loss", _describe_loss(config.get("loss"))),
    ]


def _list_summary(summary: RunSummary) -> list[Fact]:
    """Return the facts of a run that its summary says."""
    return [
        *_list_targets(summary),
        ("Data", summary.data.root),
        ("Slides", describe_slides(summary.data.slides)),
        *_list_patches(summary),
        *_list_training(summary),
    ]


def _list_targets(summary: RunSummary) -> list[Fact]:
    if not isinstance(summary, GradingSummary):
        return []
    origin = summary.tiles.get("origin")
    made = ""
    if isinstance(origin, Mapping):
        made = f"features of {origin.get('encoder') or 'an unknown encoder'}"
        made += f", {origin['tile_um']:.4g} µm tiles" if "tile_um" in origin else ""
    target = summary.target
    return [("Learned", target.title if target.is_grade else target.describe_source()), ("Tiles", made)]


def _list_patches(summary: RunSummary) -> list[Fact]:
    """Return side and resolution of the patches of a segmentation or the tiles of a grading."""
    if isinstance(summary, SegmentationSummary):
        settings, side, name = summary.data.settings, summary.data.settings.get("patch_size"), "Patch"
    else:
        settings, side, name = summary.tiles, summary.tiles.get("tile_size"), "Tile"
        if settings.get("how") == "features":
            return []
    trained = summary.resolution if isinstance(summary, SegmentationSummary) else None
    texts = [f"{side} px" if side else "", describe_resolution(settings, trained.train_mpp if trained else None)]
    return [(name, ", ".join(filter(None, texts)))]


def _list_training(summary: RunSummary) -> list[Fact]:
    return [
        ("Colours", format_value(summary.data.colours, "text")),
        ("Epochs", f"{summary.epochs}"),
        ("Seed", f"{summary.seed}"),
        ("Device", summary.device if summary.devices in (None, 1) else f"{summary.devices} × {summary.device}"),
        ("Took", format_value(summary.seconds, "seconds")),
        ("Made", format_date(summary.created)),
        ("Commit", summary.commit or ""),
    ]


def _list_next(run_dir: Path, config: Mapping[str, Any], summary: RunSummary | None) -> list[Command]:
    """Return the commands that follow a run: to map or grade slides and compare, or to continue it."""
    best = run_dir / "checkpoints" / "best.ckpt"
    if summary is None:
        last = run_dir / "checkpoints" / "last.ckpt"
        return [("Continue", write_own_command("train", f"resume={run_dir}") if last.is_file() else "")]
    commands = []
    if best.is_file():
        commands.append(("Map slides" if summary.task == "segmentation" else "Grade slides", _infer(best, config)))
    if (run_dir / "slides").is_dir():
        commands.append(("View slides", name_tool("panda.view", run_dir)))
    if summary.test is not None:
        commands.append(("Compare", name_tool("panda.report.compare", run_dir, "OTHER_RUN")))
    if (run_dir / "checkpoints" / "last.ckpt").is_file():
        longer = f"trainer.max_epochs={2 * max(summary.epochs, 1)}"
        commands.append(("Train longer", write_own_command("train", f"resume={run_dir}", longer)))
    return commands


def _describe_loss(node: Any) -> str:
    """Return class and numbers of the loss of a configuration."""
    if not isinstance(node, Mapping):
        return ""
    numbers = [f"{key.replace('_', ' ')} {value:g}" for key, value in node.items() if isinstance(value, int | float)]
    return ", ".join([str(node.get("_target_", "")).rpartition(".")[2], *numbers])


def describe_slides(slides: Mapping[str, int]) -> str:
    """Return the number of slides of each split."""
    return ", ".join(f"{slides[split]:,} {name}" for split, name in _SPLITS.items() if split in slides)


def _infer(best: Path, config: Mapping[str, Any]) -> str:
    """Return the command that maps or grades slides with the best checkpoint of a run."""
    end = f"output=out/{best.parent.parent.name}"
    if _find(config, "task", "name") != "grading":
        return write_own_command("infer", f"checkpoint={best}", "slides=SLIDES", end)
    if _find(config, "tiles", "how") == "features":
        return write_own_command("infer", f"grading_checkpoint={best}", "features=FEATURES", end)
    guide = _find(config, "segmentation_checkpoint") or "SEGMENTATION_CHECKPOINT"
    return write_own_command("infer", f"checkpoint={guide}", f"grading_checkpoint={best}", "slides=SLIDES", end)


def describe_sweep(
    folder: Path, jobs: Sequence[Job], varied: Sequence[str], constant: Sequence[Fact], best: Sequence[Job]
) -> PageHead:
    """Return the head of the page of a sweep: what all its jobs have in common.

    Of the configurations only the first is read, unless choices that it says differ between the jobs. `best` are the
    finished jobs of the best choice.
    """
    states = Counter(job.state for job in jobs)
    done = [(job.name, job.summary) for job in jobs if job.summary]
    common = _list_common([_list_summary(summary) for _, summary in done])
    if done and not any(key.startswith(_CHOSEN) for key in varied):
        common = _list_choices(read_config(folder / done[0][0] / "config.yaml")) + common
    facts = [
        (
            "Jobs",
            ", ".join([f"{len(jobs)}", *(f"{count} {state}" for state, count in states.items() if state != "done")]),
        ),
        ("Trainings", f"{sum(job.summary is not None and not job.summary.trained_by for job in jobs)}"),
        *common,
    ]
    command = write_sweep_command("train", folder)
    facts += [] if command else constant
    commands = [("Trained by", command), *_list_next_of_sweep(folder, [name for name, _ in done], varied, best)]
    return PageHead("Sweep", folder.name, facts, keep_known(commands))


def _list_next_of_sweep(folder: Path, done: Sequence[str], varied: Sequence[str], best: Sequence[Job]) -> list[Command]:
    """Return the commands that follow a sweep; `done` are the names of its finished jobs."""
    commands = [("Read the jobs again", name_tool("panda.report.sweep", folder))]
    if "data.fold" in varied and set(varied) <= set(REPEATS) and len(done) > 1:
        commands.append(("Pool the folds", name_tool("panda.report.folds", *(folder / name for name in done))))
    if len(best) == 1 and (checkpoint := folder / best[0].name / "checkpoints" / "best.ckpt").is_file():
        config = read_config(folder / best[0].name / "config.yaml")
        commands.append(("Use the best", _infer(checkpoint, config)))
    return commands


def _list_common(facts: Sequence[Sequence[Fact]]) -> list[Fact]:
    """Return the facts that all jobs have alike."""
    if not facts:
        return []
    others = [dict(own) for own in facts[1:]]
    return [
        (name, text)
        for name, text in facts[0]
        if name not in ("Took", "Made") and all(own.get(name) == text for own in others)
    ]


def _list_compared(folder: Path, summary: Tested) -> Sequence[Fact]:
    """Return the facts of a run or an evaluation that is compared."""
    if not isinstance(summary, EvaluationSummary):
        return describe_run(folder, summary).facts
    made, _ = try_read(InferenceSummary.read, folder, INFERENCE_FILE)
    return describe_inference(folder, made, int(summary.test.numbers.get("slides") or 0)).facts


def describe_comparison(
    names: tuple[str, str],
    folders: tuple[Path, Path],
    summaries: tuple[Tested, Tested],
    slides: int,
    groups: int,
) -> PageHead:
    """Return the head of the page of a comparison of two runs; facts that differ are separated by a bar."""
    facts: list[Fact] = [("Test slides", f"{slides:,}"), ("Groups of slides", f"{groups:,}")]
    heads = [dict(_list_compared(*run)) for run in zip(folders, summaries, strict=True)]
    for key in dict.fromkeys([*heads[0], *heads[1]]):
        texts = [head.get(key, "") for head in heads]
        alike = texts[0] == texts[1]
        facts.append((key, texts[0] if alike else f"{texts[0] or '–'} | {texts[1] or '–'}"))
    command = name_tool("panda.report.compare", *folders)
    return PageHead("Comparison", f"{names[1]} against {names[0]}", facts, [("Made by", command)])
