"""Measure time and memory of an audit, and the time of its tables for as many slides as PANDA has.

`python -m bench.audit` draws slides and audits them with one worker and with two, each time in new processes;
`--tables` makes the tables of 10,616 made-up records. Processor time measures the work itself on a busy machine too;
reading from a disk is not in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panda.audit.dataset import audit_folder
from panda.audit.inspection import Inspection
from panda.audit.page import write_audit_page
from panda.audit.records import Record, RecordFolder
from panda.audit.tissue_hashes import TissueHashes, hash_tissue
from panda.data.slide_rows import read_rows
from panda.synthetic.dataset import SyntheticSpec, draw_dataset

PANDA_SLIDES = 10_616
SIZES = {
    "small": SyntheticSpec(slides=48),
    # PANDA's median area
    "large": SyntheticSpec(slides=6, width=20480, height=18432, tile=512),
}
NAMES = {"small": 1, "large": 4}
"""Names that each drawn slide has in the table: to draw a large one takes longer than to look at it."""


def fill(root: Path, size: str) -> None:
    """Draw slides, and give each several names."""
    draw_dataset(root, SIZES[size], progress=False)
    lines = (root / "train.csv").read_text().splitlines()
    for line in lines[1:]:
        own, _, rest = line.partition(",")
        for number in range(1, NAMES[size]):
            for folder, suffix in (("train_images", ""), ("train_label_masks", "_mask")):
                (root / folder / f"{own}-{number}{suffix}.tiff").symlink_to(root / folder / f"{own}{suffix}.tiff")
            lines.append(f"{own}-{number},{rest}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def make_records(root: Path, out: Path, count: int) -> None:
    """Write a table and the records of its slides, a fifth of them near-duplicates in groups of four."""
    (root / "train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [f"s{number:05d},{('radboud', 'karolinska')[number % 2]},{number % 6},3+3" for number in range(count)]
    (root / "train.csv").write_text("image_id,data_provider,isup_grade,gleason_score\n" + "\n".join(lines) + "\n")
    records = RecordFolder(out / "slides", root)
    records.folder.mkdir(parents=True)
    hashes: TissueHashes | None = None
    for number, row in enumerate(read_rows(root)):
        if number % 20 >= 4 or number % 4 == 0:
            size = int(rng.integers(60, 240)), 96
            blobs = cv2.resize(rng.integers(60, 250, (12, 24, 3)).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
            hashes = hash_tissue(np.asarray(blobs, np.uint8), np.ones(size[::-1], np.bool_))
        seen = Inspection(
            row.slide_id, row.provider, 30_000_000, f"{number:032x}", ((20480, 18432), (5120, 4608), (1280, 1152)),
            (1.0, 4.0, 16.0), (0.48, 0.48), "openslide", "fast", "generic-tiff", "strict", 0.2, 17.0, hashes, 0.0, 0.6,
            0.0, (20480, 18432), 2, {"0": 1_000_000, "1": 300_000, "2": 100_000}, 0.25, 4.0, 0.95,
        )  # fmt: skip
        record = asdict(Record(records.fingerprint_slide(row), seen))
        (records.folder / f"{row.slide_id}.json").write_text(json.dumps(record))


def measure(root: Path, out: Path, workers: int) -> dict[str, Any]:
    """Audit in a process of its own, and return its figures."""
    command = [sys.executable, "-m", "bench.audit", "--alone", str(root), str(out), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def alone(root: Path, out: Path, workers: int) -> None:
    """Audit, and print time and memory."""
    began = time.perf_counter()
    counts = audit_folder(root, out, workers=workers, progress=False)
    audited = time.perf_counter() - began
    assert counts.groups is not None
    write_audit_page(out)
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    mib = 2**20 if sys.platform == "darwin" else 2**10
    figures = {
        "slides": counts.slides,
        "audit_s": round(audited, 2),
        "page_s": round(time.perf_counter() - began - audited, 2),
        "parent_cpu_s": round(own.ru_utime + own.ru_stime, 2),
        "workers_cpu_s": round(others.ru_utime + others.ru_stime, 2),
        "parent_mib": round(own.ru_maxrss / mib),
        "worker_mib": round(others.ru_maxrss / mib),
        "slides_folder_kib": round(sum(file.stat().st_size for file in (out / "slides").iterdir()) / 1024),
        "page_kib": round((out / "report.html").stat().st_size / 1024),
        "groups": counts.groups.groups,
    }
    print(json.dumps(figures))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("--tables", action="store_true", help="the tables of as many slides as PANDA has")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        alone(Path(given.alone[0]), Path(given.alone[1]), int(given.alone[2]))
        return
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, get_context("spawn")) as other:
        # What another process makes takes no memory here, which a new process would have counted as its own.
        folder = Path(name)
        if given.tables:
            for count in (PANDA_SLIDES // 8, PANDA_SLIDES):
                root, out = folder / f"data{count}", folder / f"audit{count}"
                other.submit(make_records, root, out, count).result()
                print(measure(root, out, 1), flush=True)
            return
        for size, spec in SIZES.items():
            other.submit(fill, folder / size, size).result()
            for workers in (1, 2):
                found = measure(folder / size, folder / f"{size}-{workers}", workers)
                each = found["workers_cpu_s"] / found["slides"]
                minutes = " and ".join(f"{PANDA_SLIDES * each / cores / 60:.0f}" for cores in (2, 16))
                print(
                    f"{spec.width} x {spec.height} px, {workers} at a time: {found['slides'] / found['audit_s']:.1f} "
                    f"slides/s, {each:.3f} s of processor time a slide; {PANDA_SLIDES:,} of them keep 2 and 16 cores "
                    f"busy for {minutes} min; {found}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
