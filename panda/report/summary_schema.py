"""A check of `summary.json`, and the text of docs/summary.md.

`python -m panda.report.summary_schema` prints the page; with files it checks them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from panda.errors import ManifestError
from panda.report.run_folder import read_json
from panda.report.summary_keys import BLOCKS, GRADING, KINDS, SCHEMA, SEGMENTATION


def _models() -> dict[str, type[BaseModel]]:
    """A model of each object: its keys, no other, each of its kind."""
    models: dict[str, type[BaseModel]] = {}

    def type_of(kind: str) -> Any:
        if kind in KINDS:
            return KINDS[kind]
        if kind.endswith(" by name"):
            return dict[str, models[kind.removesuffix(" by name")]]  # type: ignore[misc]
        return Union[tuple(models[title] for title in kind.split(" or "))]  # noqa: UP007 (as many as there are)

    for block in reversed(BLOCKS):
        fields: dict[str, Any] = {}
        for key in block.keys:
            kind = type_of(key.kind)
            default = None if key.absent else ...
            # By alias: pydantic has names of its own, schema among them.
            fields[f"key_{key.name}"] = (Optional[kind] if key.null else kind, Field(default, alias=key.name))  # noqa: UP045
        models[block.title] = create_model(block.title, __config__=ConfigDict(strict=True, extra="forbid"), **fields)
    return models


def summary_faults(summary: Mapping[str, Any]) -> list[str]:
    """Say where a summary is not what docs/summary.md says.

    Args:
        summary: The content of `summary.json`.

    Returns:
        A sentence a fault, with the key; empty where there is none.
    """
    if summary.get("schema") != SCHEMA:
        return [f"schema is {summary.get('schema')!r}: this version describes {SCHEMA}"]
    block = {"segmentation": SEGMENTATION, "grading": GRADING}.get(str(summary.get("task")))
    if block is None:
        return [f"task is {summary.get('task')!r}: it must be segmentation or grading"]
    try:
        _models()[block.title].model_validate(summary)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}" for fault in error.errors()]
    return []


def page() -> str:
    """The text of docs/summary.md."""
    parts = [_HEAD]
    for block in BLOCKS:
        base = f" It has all keys of [{block.base.title}](#{_anchor(block.base.title)}), and:" if block.base else ""
        parts.append(f"## {block.title}\n\n{block.about}{base}\n")
        lines = ["| key | type | unit | meaning | null where |", "|---|---|---|---|---|"]
        for key in block.own:
            null = f"absent: {key.absent}" if key.absent else key.null
            lines.append(f"| `{key.name}` | {_linked(key.kind)} | {key.unit} | {key.meaning} | {null} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


_HEAD = f"""# `summary.json`

What a run says of itself, for programs; version {SCHEMA} (`schema`). The number grows when a key is added, goes, or
changes its meaning. An undefined figure is null, never 0. `python -m panda.report.summary_schema FILE …` checks files
against this page, which `python -m panda.report.summary_schema > docs/summary.md` makes.

Version 2 had no intervals of the AUROCs of grading, and its figures of attention, then null, of validation too.

Version 1 had no `bootstrap`, `calibration`, `by_grade`, `no_interval`, `groups` and `benign_slides`; intervals of the
two Dice alone; no means over slides but that of Dice; no areas under curves; and Dice, IoU, precision and
`all_tissue_dice` of slides without any cancer were 0 where something was predicted.
"""


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _linked(kind: str) -> str:
    if kind in KINDS:
        return kind
    title, by_name, _ = kind.partition(" by name")
    return " or ".join(f"[{part}](#{_anchor(part)})" for part in title.split(" or ")) + by_name


def main(paths: Sequence[str]) -> int:
    """Print the page, or the faults of files.

    Returns:
        The exit status: 1 if a file has a fault.

    Raises:
        ManifestError: If a file is missing or holds no JSON object.
    """
    if not paths:
        print(page(), end="")
    faulty = False
    for path in map(Path, paths):
        summary, fault = read_json(path)
        if fault:
            raise ManifestError(f"{path}: {fault}")
        faults = summary_faults(summary)
        faulty |= bool(faults)
        print("\n".join(f"{path}: {fault}" for fault in faults) or f"{path}: as described")
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
