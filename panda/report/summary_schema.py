"""Describe and check `summary.json`: `python -m panda.report.summary_schema` prints docs/summary.md.

With the names of files it checks these.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from panda.errors import ManifestError
from panda.report.run_folder import read_json
from panda.report.run_summary import (
    SCHEMA,
    CommonSummary,
    EvaluationSummary,
    GradingSummary,
    SegmentationSummary,
    parse_summary,
)

_HEAD = f"""# `summary.json`

What a run says about itself, for programs; version {SCHEMA} (`schema`). The version grows when a key is added, goes,
or changes its meaning. An undefined figure is null, never 0. `python -m panda.report.summary_schema FILE …` checks
files, and `python -m panda.report.summary_schema > docs/summary.md` writes this page from the models in the code.

Version 3 left labelled cancer outside the tissue out of every score. It had no figures of whole slides, and of the
trivial answer only `all_tissue_dice`.

Version 2 had no intervals of the AUROCs of grading. Its figures of attention, then null, were given for validation too.

Version 1 had no `bootstrap`, `calibration`, `by_grade`, `no_interval`, `groups` and `benign_slides`. It had intervals
of the two Dice only, means over slides of Dice only, and no areas under curves. Dice, IoU, precision and
`all_tissue_dice` of slides without any cancer were 0 if something was predicted.
"""


def render_page() -> str:
    """Return the text of docs/summary.md, made from the JSON schema of the models."""
    models = (CommonSummary, SegmentationSummary, GradingSummary, EvaluationSummary)
    _, schema = models_json_schema([(model, "validation") for model in models])
    blocks: dict[str, dict[str, Any]] = {
        name: block for name, block in schema["$defs"].items() if "properties" in block
    }
    parts = [_HEAD]
    for name in _sort_by_use(blocks, [model.__name__ for model in models]):
        keys, base = blocks[name]["properties"], _find_base(blocks, name)
        about = blocks[name]["description"].partition("Attributes:")[0]
        about += f" It has all keys of {_make_link(base)}, and:" if base else ""
        rows = [
            f"| `{key}` | {_name_type(field)} | {field.get('description', '')} |"
            for key, field in keys.items()
            if not base or key not in blocks[base]["properties"]
        ]
        parts.append("\n".join([f"## {name}\n", " ".join(about.split()), "", *_COLUMNS, *rows, ""]))
    return "\n".join(parts)


_COLUMNS = ("| key | type | meaning |", "|---|---|---|")


def _sort_by_use(blocks: Mapping[str, Any], first: Sequence[str]) -> list[str]:
    """Order objects so that each comes after the one that holds it."""
    found = list(first)
    for name in found:  # grows while it is read
        used = re.findall(r"#/\$defs/(\w+)", json.dumps(blocks[name]))
        found += [one for one in dict.fromkeys([*used, _find_base(blocks, name)]) if one in blocks and one not in found]
    return found


def _find_base(blocks: Mapping[str, Any], name: str) -> str:
    """Return the largest object whose keys are all keys of this one too; an empty text if there is none."""
    keys = {name: set(block["properties"]) for name, block in blocks.items()}
    bases = [other for other in blocks if keys[other] < keys[name] and len(keys[other]) > 2]
    return max(bases, key=lambda other: len(keys[other]), default="")


def _make_link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _name_type(field: Mapping[str, Any]) -> str:
    """Name the type of a field of a JSON schema in words."""
    if (kinds := field.get("anyOf", field.get("oneOf"))) is not None:
        return " or ".join(map(_name_type, kinds))
    if "const" in field or "enum" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return _make_link(field["$ref"].rpartition("/")[2])
    kind, inner = field.get("type", "any"), field.get("items") or field.get("additionalProperties")
    if isinstance(inner, Mapping) and inner != {"$ref": "#/$defs/JsonValue"}:
        return f"list of {_name_type(inner)}" if kind == "array" else f"{_name_type(inner)} by name"
    names = {"string": "text", "integer": "count" if "minimum" in field else "integer", "array": "[low, high]"}
    bounds = f", {field['minimum']:g} to {field['maximum']:g}" if kind == "number" and "maximum" in field else ""
    name: str = names.get(kind, kind)
    return name + bounds


def main(paths: Sequence[str]) -> int:
    """Print docs/summary.md, or the faults of files; return 1 if a file has a fault."""
    if not paths:
        print(render_page(), end="")
    faulty = False
    for path in map(Path, paths):
        content, fault = read_json(path)
        if fault:
            raise ManifestError(f"{path}: {fault}")
        _, faults = parse_summary(content)
        faulty |= bool(faults)
        print("\n".join(f"{path}: {fault}" for fault in faults) or f"{path}: as described")
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
