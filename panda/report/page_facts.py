"""Assemble the head of a page: what was made and from what, if the files of a folder say it, and commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panda.choices import name_command, name_tool
from panda.inference.slide_result import SlideFacts, SlideResult
from panda.report.head import PageHead
from panda.report.inference_summary import InferenceSummary
from panda.report.table import format_value
from panda.settings import format_override
from panda.tasks.metadata import TrainedResolution

Fact = tuple[str, str]
Command = tuple[str, str]


def list_network(network: Mapping[str, Any]) -> list[Fact]:
    """Return network and encoder of the arguments that build a network, in a configuration or a checkpoint."""
    architecture = str(network.get("architecture") or "").lower()  # upper and lower case are one
    kinds = (architecture, network.get("pooling"), network.get("decoder"))
    name = next((str(kind) for kind in kinds if kind), "")
    kind = "pooling" if network.get("pooling") else "decoder" if network.get("decoder") else ""
    encoder = network.get("encoder_name") or network.get("encoder")
    weights = network.get("encoder_weights")
    return [
        ("Network", f"{name} {kind}".strip()),
        ("Encoder", f"{encoder}, {weights} weights" if encoder and weights else str(encoder or "")),
    ]


def describe_resolution(settings: Mapping[str, Any], train_mpp: Sequence[float] | None = None) -> str:
    """Return level or µm/px that was asked for, with the µm/px of the training slides at the level if known."""
    if (mpp := settings.get("mpp")) is not None:
        return f"{mpp:g} µm/px"
    if (level := settings.get("level")) is None:
        return ""
    if not train_mpp:
        return f"level {level}"
    low, high = f"{train_mpp[0]:.3g}", f"{train_mpp[-1]:.3g}"
    return f"level {level}, {low if low == high else f'{low} to {high}'} µm/px"


def write_command(name: str, overrides: Iterable[str] | None) -> str:
    """Return a command with the overrides that were typed; empty if they are unknown."""
    return "" if overrides is None else " ".join([name_command(name), *map(shlex.quote, overrides)])


def write_own_command(name: str, *settings: str) -> str:
    """Return a command with settings `key=value`, quoted if they need it."""
    return " ".join([name_command(name), *map(format_override, settings)])


def keep_known(commands: Iterable[Command]) -> list[Command]:
    """Return the commands that are known."""
    return [(name, text) for name, text in commands if text]


def format_date(created: str) -> str:
    """Return the time of a summary without its seconds."""
    return created.replace("T", " ")[:16] + " UTC"


def describe_inference(folder: Path, summary: InferenceSummary | None, slides: int) -> PageHead:
    """Return the head of the page of an inference over so many finished slides."""
    if summary is None:
        return PageHead("Inference", folder.name)
    choice = summary.threshold_choice
    origin = f"the best {choice.criterion} on {choice.chosen_on}" if choice and choice.score is not None else "given"
    facts = [
        ("Checkpoint", summary.checkpoint),
        ("Grading checkpoint", summary.grading_checkpoint or ""),
        *(list_network(summary.network) if summary.network else ()),
        ("Patch", _describe_patch(summary.patch_size, summary.resolution)),
        ("Threshold", f"{format_value(summary.threshold)}, {origin}"),
        ("Slides", f"{slides:,}"),
        ("Labels", summary.labels or ""),
        ("Device", f"{summary.device}, {summary.precision}"),
        ("Made", format_date(summary.date)),
        ("Commit", summary.commit or ""),
    ]
    scored = (folder / "test_slides.csv").is_file()
    commands = [
        ("Made by", write_command("infer", summary.overrides)),
        ("View slides", name_tool("panda.view", folder)),
        ("Compare", name_tool("panda.report.compare", folder, "OTHER_RUN") if scored else ""),
    ]
    return PageHead("Inference", folder.name, facts, keep_known(commands))


def _describe_patch(side: int | None, resolution: TrainedResolution) -> str:
    where = describe_resolution(resolution.model_dump(), resolution.train_mpp)
    return f"{side} px, {where}" if side else where


def describe_slide(facts: SlideFacts, overview: str) -> PageHead:
    """Return the head of the page of a slide; `overview` is the address of the page of all slides."""
    mpp = " × ".join(f"{value:.4g}" for value in facts.mpp or ())
    known = [("µm/px", f"{mpp} (x × y)" if mpp else "")]
    if isinstance(facts, SlideResult):
        made, trained = facts.provenance, facts.provenance.segmentation
        spans = f"{' × '.join(f'{value * facts.downsample:.3g}' for value in facts.mpp)} µm, " if facts.mpp else ""
        side, asked = trained.get("patch_size"), trained.get("resolution")
        where = ""
        if isinstance(asked, Mapping):
            seen = asked.get("train_mpp")
            known_mpp = [mpp for mpp in seen if isinstance(mpp, float)] if isinstance(seen, list) else []
            where = describe_resolution(asked, known_mpp)
        patch = [f"{side} px" if side else "", where]
        known += [
            ("Scale", facts.mpp_note),
            ("A pixel of the map spans", f"{spans}{facts.downsample:.4g} level-0 px a side"),
            ("File", facts.file.name),
            ("Checkpoint", made.checkpoint),
            ("Grading checkpoint", made.grading_checkpoint or ""),
            ("Patch", ", ".join(filter(None, patch))),
            ("Precision", made.precision + (f", {made.tta}" if made.tta != "none" else "")),
        ]
    if facts.bounds is not None:
        known.append(("Coordinates are", facts.frame))
    return PageHead("Slide", facts.slide_id, known, overview=("all slides", overview))
