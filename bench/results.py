"""The results: rows of rounds, ratios of them, a table for people and a file for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from panda.files import write_whole

BASELINE = "openslide"
UNITS = {
    "reading": "Mpx/s",
    "extraction": "tissue tiles/s",
    "stores": "patches/s",
    "memory": "MiB at most",
    "start": "s",
    "training": "steps/s",
    "grading": "bags/s",
    "grading memory": "MiB at most",
    "inference": "tiles/s",
    "mapping": "Mpx of slide/s",
    "mapping memory": "MiB at most",
    "pipeline": "tiles/s",
    "pipeline cpu": "ms of CPU a tile",
    "files of a slide": "s of CPU a slide",
    "infer.py": "s a slide",
    "features": "tiles/s",
    "features cpu": "ms of CPU a tile",
}
PACKAGES = (
    *("panda-wsi", "openslide-python", "openslide-bin", "imagecodecs", "tifffile", "zarr", "numpy", "pillow"),
    *("opencv-python-headless", "pyvips", "pyvips-binary", "cucim-cu12", "fastslide", "tiatoolbox", "hs2p"),
    *("histolab", "dlup", "torch", "monai"),
)


@dataclass
class Results:
    """The rows and the headline figures of one run.

    Attributes:
        rows: (part, contender, case) → one value a round, in the part's unit.
        notes: (part, contender, case) → remark on a row.
        headline: Name → figure.
        left_out: Contender → why it has no row, or no further rounds.
    """

    rows: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    notes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    headline: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, name: str, case: str, value: float, note: str = "") -> None:
        """Add the value of one round."""
        self.rows.setdefault((part, name, case), []).append(value)
        if note:
            self.notes[part, name, case] = note

    def ratio(self, part: str, names: tuple[str, str], cases: tuple[str, str]) -> float | None:
        """Return the median over rounds of one row's value by another's; None if a row is missing."""
        above, below = (self.rows.get((part, name, case), []) for name, case in zip(names, cases, strict=True))
        ratios = [a / b for a, b in zip(above, below, strict=False)]
        return median(ratios) if ratios else None

    def head(self, key: str, part: str, names: tuple[str, str], cases: tuple[str, str]) -> None:
        """Make a ratio of rows a headline figure, if both rows are there."""
        if (ratio := self.ratio(part, names, cases)) is not None:
            self.headline[key] = round(ratio, 4)

    def table(self) -> str:
        """Format the rows for people: median, range, and the multiple of plain OpenSlide if there is one."""
        lines: list[str] = []
        for part, unit in UNITS.items():
            rows = {key: values for key, values in self.rows.items() if key[0] == part}
            if rows:
                lines += ["", f"{part}, {unit}: median (range of {max(map(len, rows.values()))})"]
            for case in dict.fromkeys(case for _, _, case in rows):
                lines.append(f"  {case}")
                for (_, name, row_case), values in rows.items():
                    if row_case != case:
                        continue
                    ratio = self.ratio(part, (name, BASELINE), (case, case))
                    times = "" if ratio is None else f"  {ratio:6.2f} x {BASELINE}"
                    span = f"({min(values):.4g} to {max(values):.4g})"
                    note = self.notes.get((part, name, case), "")
                    lines.append(f"    {name:<18}{median(values):>9.4g} {span:<22}{times}  {note}".rstrip())
        if self.left_out:
            lines += ["", "left out"]
            lines += [f"  {name}: {why}" for name, why in self.left_out.items()]
        if self.headline:
            lines += ["", "headline"]
            lines += [f"  {key:<44}{value:>10.4g}" for key, value in self.headline.items()]
        return "\n".join(lines)

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        """Write the results as JSON: the headline figures at the top level, then rows, settings and machine."""
        rows = [
            {
                **{"part": part, "name": name, "case": case, "unit": UNITS[part], "rounds": values},
                **{"median": median(values), "low": min(values), "high": max(values)},
                "vs_openslide": self.ratio(part, (name, BASELINE), (case, case)),
                "note": self.notes.get((part, name, case), ""),
            }
            for (part, name, case), values in self.rows.items()
        ]
        content = {
            **self.headline,
            **{"left_out": self.left_out, "settings": settings, "machine": machine(), "rows": rows},
        }
        write_whole(path, json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the system and the versions of the measured libraries."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
