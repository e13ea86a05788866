"""Time, memory and size of the tables and the page of many slides: `python -m bench.tables [SLIDES [ROWS]]`.

SLIDES have a folder with small files each, ROWS are records without files, whose state is given. Each step runs in a
process of its own, and prints its CPU time, and the most memory before and after it. The last one is
`python infer.py collect=…` as a whole. No slide is mapped.
"""

from __future__ import annotations

import contextlib
import json
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.memory import peak_mib
from bench.slides import CACHE
from panda.app.inference_tables import InferenceTables
from panda.data.failures import Failure
from panda.data.mapped_slide import RESULT_FILE
from panda.data.run_records import RECORDS_FOLDER
from panda.data.slide_records import Outcome, RowValue
from panda.data.slide_state import FOLDER_FILE, read_state
from panda.inference.quantify import QuantifySettings
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.report.slide_page import PAGE
from panda.tasks.figures import make_timestamp
from panda.tasks.metadata import TrainedResolution

SLIDES, ROWS = 10_616, 1_000_000
REPOSITORY = Path(__file__).resolve().parents[1]
MADE_WITH, KEY = "f" * 64, "k" * 64
FAILED = 0.005
"""Share of the rows without files that failed."""
_FILES = (
    *("heatmap.png", "overlay.png", "map.png", "slide.jpg", "regions.geojson", "probability.ome.tiff"),
    *(PAGE, RESULT_FILE),
)
_CHUNKS = 64
"""Files of a canvas: 512 px chunks with tissue of a biopsy at 2 µm/px."""


class _WithoutFiles(InferenceTables):
    """Tables of slides that are given by their number, whose files are taken to be unchanged."""

    rows = 0

    def _find_state(self, slide_id: str) -> str:
        return "unchanged"

    def _list_slides(self) -> Iterator[str]:
        return (_name(number) for number in range(self.rows))


def _name(number: int) -> str:
    return f"{number * 2654435761 % 2**32:032x}"


def _make_row(slide_id: str, chance: random.Random) -> dict[str, RowValue] | None:
    tumor, tissue = chance.random() * 20, 20 + chance.random() * 20
    found: dict[str, RowValue] = {
        "slide_id": slide_id,
        "tumor_percent_of_tissue": 100 * tumor / tissue,
        "tumor_mm2": tumor,
        "tissue_mm2": tissue,
        "tumor_px": int(tumor * 1e6),
        "tissue_px": int(tissue * 1e6),
        "unscored_tissue_px": 0,
        "tissue_how": "strict",
        "num_regions": chance.randrange(50),
        "threshold": 0.42,
        "in_sample": None,
        "mpp_source": "tiff",
    }
    found |= {
        "dice": chance.random(),
        "true_tumor_mm2": tumor * chance.random(),
        "tumor_difference_mm2": chance.random(),
    }
    return found | {"mpp_x": 0.5, "mpp_y": 0.5, "isup_predicted": chance.randrange(6)}


def _write_records(folder: Path, count: int, find_state: bool) -> None:
    """Write the records of slides, as a process for each 100,000 of them would."""
    chance = random.Random(0)
    for first in range(0, count, 100_000):
        path = folder / RECORDS_FOLDER / f"{first}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            for slide_id in map(_name, range(first, min(first + 100_000, count))):
                state = read_state(folder / slide_id, RESULT_FILE, (PAGE,)) if find_state else "unchanged"
                key, row, failure = KEY, _make_row(slide_id, chance), None
                if not find_state and chance.random() < FAILED:
                    text = f"/data/{slide_id}.tiff: cannot be read"
                    key, row, failure = "", None, Failure(slide_id, "inference", "SlideError", text)
                outcome = Outcome(
                    slide_id=slide_id, made_with=MADE_WITH, state=state, key=key, row=row, failure=failure
                )
                file.write(f"{outcome.model_dump_json()}\n")


def _write_slides(folder: Path, count: int) -> None:
    """Write the folders of slides, with small files."""
    for slide_id in map(_name, range(count)):
        chunks = folder / slide_id / "canvas.zarr" / "0" / "c" / "0"
        chunks.mkdir(parents=True)
        for number in range(_CHUNKS):
            (chunks / str(number)).touch()
        for name in (*_FILES, f"canvas.zarr/{FOLDER_FILE}"):
            (folder / slide_id / name).write_bytes(b"{}")


def write_run(folder: Path, slide_ids: Iterable[str]) -> None:
    """Record a run over slides, as one that was killed would."""
    summary = InferenceSummary(
        checkpoint="best.ckpt",
        grading_checkpoint=None,
        threshold=0.42,
        threshold_choice=None,
        provider=None,
        quantify=QuantifySettings(),
        resolution=TrainedResolution(level=1, mpp=None, train_mpp=(2.0, 2.0, 2.0)),
        precision="fp32",
        compiled=False,
        engine_choice="",
        tta="none",
        reader="auto",
        mpp_override=None,
        allow_unknown_mpp=False,
        device="cpu",
        date=make_timestamp(),
        last_run=LastRun(slides=0, failed=0, seconds=0.0),
        labels=None,
        notes=[],
    )
    InferenceTables(folder, MADE_WITH).write_run(slide_ids, summary)


def _find_finished(folder: Path, count: int) -> str:
    finished = InferenceTables(folder, MADE_WITH).find_finished({_name(number): KEY for number in range(count)})
    return f"{len(finished):,} of {count:,} are finished"


def _write_tables(folder: Path, count: int) -> str:
    tables = InferenceTables(folder, MADE_WITH) if (folder / _name(0)).exists() else _WithoutFiles(folder, MADE_WITH)
    if isinstance(tables, _WithoutFiles):
        tables.rows = count
    found = tables.write()
    return f"{found.rows:,} rows, {found.failed:,} failed"


def _write_page(folder: Path, _: int) -> str:
    return f"{write_inference_page(folder).stat().st_size / 1e6:.2f} MB"


def _collect(folder: Path, _: int) -> str:
    sys.argv = ["infer.py", f"collect={folder}"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(REPOSITORY / "infer.py"), run_name="__main__")
    return f"{(folder / 'report.html').stat().st_size / 1e6:.2f} MB"


STEPS = {
    "list the finished slides": _find_finished,
    "tables": _write_tables,
    "page": _write_page,
    "collect": _collect,
}


def run_step(step: str, folder: Path, count: int) -> None:
    """Run a step, and print it with its CPU time in s, and the memory in MiB before and after it."""
    before, started = peak_mib(), time.process_time()
    text = STEPS[step](folder, count)
    print(json.dumps([text, time.process_time() - started, before, peak_mib()]))


def main(slides: int, rows: int) -> None:
    """Measure every step with files, and those without files for a tenth of the rows and all of them."""
    print(f"{'slides':>9}  {'step':<26}{'CPU s':>8}{'MiB before':>12}{'MiB at most':>13}  result")
    CACHE.mkdir(exist_ok=True)
    for count, with_files in ((slides, True), (rows // 10, False), (rows, False)):
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            folder = Path(made)
            if with_files:
                _write_slides(folder, count)
                write_run(folder, map(_name, range(count)))
            _write_records(folder, count, find_state=with_files)
            for step in STEPS if with_files else ("tables", "page"):
                command = [sys.executable, "-m", "bench.tables", step, made, str(count)]
                ran = subprocess.run(command, capture_output=True, text=True, check=True)
                text, seconds, before, after = json.loads(ran.stdout.splitlines()[-1])
                print(f"{count:>9,}  {step:<26}{seconds:>8.1f}{before:>12.0f}{after:>13.0f}  {text}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run_step(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]), *(SLIDES, ROWS)[len(sys.argv) - 1 :])
