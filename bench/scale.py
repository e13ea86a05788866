"""Count what one more slide costs `infer.py`: `python -m bench.scale [--side 19456] [--tissue 0.05] [--slides 3]`.

Needs strace. Each figure is the difference between a run over several slides and a run over one, a slide. A drawn slide
of the median size of PANDA's is mapped by an untrained network at level 1, so CPU time includes the network's.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from bench.slides import shared_tiles_slide
from panda.models.segmentation import Segmenter
from panda.tasks.metadata import SegmentationMetadata, TrainedResolution
from panda.tasks.threshold import search_threshold

ROOT = Path(__file__).parents[1]
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_SLIDE = re.compile(r"/slide\d+\.tiff")
_KINDS = {
    "opened": ("open", "openat"),
    "asked for (stat, access)": (
        "stat",
        "lstat",
        "newfstatat",
        "statx",
        "access",
        "faccessat",
        "faccessat2",
        "readlink",
    ),
    "synced": ("fsync", "fdatasync"),
    "renamed": ("rename", "renameat", "renameat2"),
    "removed": ("unlink", "unlinkat", "rmdir"),
    "MB read": ("read", "pread64"),
    "MB written": ("write", "pwrite64"),
}
_NAMES = {call: kind for kind, calls in _KINDS.items() for call in calls}


def measure(side: int, tissue: float, slides: int) -> None:
    """Print the costs of a slide: calls and bytes by folder, CPU time, and what it leaves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = shared_tiles_slide(side, tissue).image_path
        _write_checkpoint(folder / "best.ckpt")
        for number in range(1 + slides):
            target = folder / ("all" if number else "one") / f"slide{number}.tiff"
            target.parent.mkdir(exist_ok=True)
            os.link(picture, target) if os.stat(picture).st_dev == os.stat(folder).st_dev else target.symlink_to(
                picture
            )
        costs, seconds, left = {}, {}, {}
        for which in ("one", "all"):
            seconds[which] = _run(folder, which, f"timed_{which}")
            costs[which] = _trace(folder, which)
            left[which] = [path for path in (folder / f"timed_{which}").rglob("*") if path.is_file()]
        more = slides - 1
        print(f"a slide of {side} x {side} px, {picture.stat().st_size / 1e6:.1f} MB, {tissue:.0%} tissue")
        for key in sorted(costs["all"]):
            print(f"{' '.join(key):45} {(costs['all'][key] - costs['one'][key]) / more:10.2f}")
        one_more = (seconds["all"] - seconds["one"]) / more
        print(f"{'s of CPU':45} {one_more:10.2f}")
        print(f"{'s of CPU of a command beside its slides':45} {seconds['one'] - one_more:10.2f}")
        print(f"{'files left':45} {(len(left['all']) - len(left['one'])) / more:10.1f}")
        sizes = {which: sum(path.stat().st_size for path in paths) for which, paths in left.items()}
        print(f"{'MB left':45} {(sizes['all'] - sizes['one']) / more / 1e6:10.2f}")
        again = _run(folder, "all", "timed_all"), _trace(folder, "all", "timed_all")
        print(f"all {slides} finished slides again: {again[0]:.2f} s of CPU")
        for key, count in sorted(again[1].items()):
            print(f"{' '.join(key):45} {count / slides:10.2f} a slide")


def _write_checkpoint(path: Path) -> None:
    torch.manual_seed(0)
    network = Segmenter("unet", "resnet18", decoder_channels=[16, 16, 8, 8, 8])
    metadata = SegmentationMetadata(
        network=network.options,
        resolution=TrainedResolution(level=1, mpp=None, train_mpp=None),
        patch_size=512,
        overlap=0.25,
        label_maps={},
        threshold=search_threshold({}),
        precision="fp32",
        train_slides=(),
        val_slides=(),
    )
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "panda": metadata.to_entry()}, path)


def _command(which: str, output: str) -> list[str]:
    engine = ["engine.device=cpu", "engine.precision=fp32", "engine.compile=never", "engine.post_workers=0"]
    given = ["checkpoint=best.ckpt", f"slides={which}", f"output={output}", "threshold=0.9"]
    return [sys.executable, str(ROOT / "infer.py"), *given, *engine]


def _run(folder: Path, which: str, output: str) -> float:
    """Return the CPU time of a run, in s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(_command(which, output), cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _trace(folder: Path, which: str, output: str = "") -> Counter[tuple[str, str]]:
    """Count the calls of a run, and the MB, by what they do and whether it is to a slide or to the output."""
    output = output or f"traced_{which}"
    logs = folder / f"logs_{output}"
    logs.mkdir()
    calls = ",".join(_NAMES)
    strace = ["strace", "-ff", "-y", "-s", "0", "-qq", "-e", f"trace={calls}", "-o", str(logs / "log")]
    subprocess.run([*strace, *_command(which, output)], cwd=folder, check=True, capture_output=True)
    counts: Counter[tuple[str, str]] = Counter()
    for log in logs.iterdir():
        for line in log.read_text(errors="replace").splitlines():
            found = _CALL.match(line)
            if found is None or found[1] not in _NAMES:
                continue
            kind = _NAMES[found[1]]
            place = "slide" if _SLIDE.search(found[2]) else "output" if output in found[2] else ""
            if place:
                counts[place, kind] += int(found[3]) / 1e6 if kind.startswith("MB") else 1  # type: ignore[assignment]
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=19_456)
    parser.add_argument("--tissue", type=float, default=0.05)
    parser.add_argument("--slides", type=int, default=3)
    arguments = parser.parse_args()
    measure(arguments.side, arguments.tissue, arguments.slides)
