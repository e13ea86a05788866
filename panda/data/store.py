"""The patch store: the patches of many slides under one set of settings.

`<store_root>/<name of the data folder>-<fingerprint>` holds `store.json` (the settings), one folder a slide
(`panda.data.patches`) and `splits/` (`panda.data.patchset`). Extraction resumes: what is finished stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.data.disk import estimate_need, refuse_without_room, surely_fits
from panda.data.failures import Failure
from panda.data.manifest import SlideRecord
from panda.data.patches import PARTIAL, SlidePatches, extract_slide, load_slide
from panda.data.pixels import SLIDE_FILE
from panda.data.settings import PatchSettings
from panda.errors import ManifestError, PandaError
from panda.files import fingerprint, locked, remove, write_whole
from panda.wsi.tissue import RULES

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the store's layout; another version gives another folder."""
STORE_FILE = "store.json"


@dataclass(frozen=True)
class StoreResult:
    """What an extraction leaves.

    Attributes:
        store: The store's folder.
        slides: Slide id → its patches, in the order of the records.
        failures: The slides that have none, in the order of the records.
    """

    store: Path
    slides: dict[str, SlidePatches]
    failures: list[Failure]


class _StoppedError(Exception):
    """Another slide has ended the run."""


def store_path(store_root: Path | str, root: Path | str, settings: PatchSettings) -> Path:
    """Folder of the store for a data folder and settings; other settings never share it.

    Args:
        store_root: The folder of all stores.
        root: The data folder, whose name is used.
        settings: How patches are cut.

    Returns:
        `<store_root>/<name of root>-<12 hexadecimal digits>`.
    """
    return Path(store_root) / f"{Path(root).resolve().name}-{fingerprint(_store_content(settings))[:12]}"


def extract_store(
    records: Sequence[SlideRecord],
    settings: PatchSettings,
    store_root: Path | str,
    root: Path | str,
    *,
    workers: int = 2,
    progress: bool = True,
) -> StoreResult:
    """Cut the patches of all slides that the store does not have yet.

    A slide that fails is told in the result and the rest go on. The process may be killed at any moment: the
    next call goes on from the finished slides. A second process on the same store waits for the first.

    Args:
        records: The slides.
        settings: How to cut.
        store_root: The folder of all stores.
        root: The data folder, for the store's name.
        workers: Slides cut at the same time, in threads.
        progress: Show a bar over the slides, with the patches so far.

    Returns:
        The patches of each slide, and the failures.

    Raises:
        PandaError: The store cannot be written (a full disk), or will not fit; finished slides are kept.
        ManifestError: The folder holds a store of other settings.
    """
    store = store_path(store_root, root, settings)
    slides: dict[str, SlidePatches] = {}
    failures: dict[str, Failure] = {}
    stop = threading.Event()
    with _writing(store), locked(store / STORE_FILE):
        _prepare(store, settings)
        for record in records:
            if (found := load_slide(record, settings, store)) is not None:
                slides[record.slide_id] = found
        pending = [record for record in records if record.slide_id not in slides]
        # Where no pixels are kept, looking at a few slides first would only take the time that it takes to cut them.
        if pending and settings.store != "slide" and not surely_fits(pending, settings, store):
            need = estimate_need(pending, settings)
            if need is not None:
                log.info("%s: %s to write", store, need)
                refuse_without_room(need, store)
        with (
            ThreadPoolExecutor(max(1, workers), thread_name_prefix="extract") as pool,
            tqdm(total=len(records), initial=len(slides), desc="patches", unit="slide", disable=not progress) as bar,
        ):
            futures = [pool.submit(_extract, record, settings, store, stop) for record in pending]
            patches = sum(map(len, slides.values()))
            try:
                for future in as_completed(futures):
                    outcome = future.result()
                    if isinstance(outcome, Failure):
                        failures[outcome.slide_id] = outcome
                    else:
                        slides[outcome.record.slide_id] = outcome
                        patches += len(outcome)
                    bar.set_postfix(patches=patches, failed=len(failures), refresh=False)
                    bar.update()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return _in_order(records, store, slides, failures)


def load_store(
    records: Sequence[SlideRecord], settings: PatchSettings, store_root: Path | str, root: Path | str
) -> StoreResult:
    """Read what an earlier extraction left, without cutting anything.

    Args:
        records: The slides.
        settings: As in `extract_store`.
        store_root: As in `extract_store`.
        root: As in `extract_store`.

    Returns:
        The patches of each finished slide; the others are failures of the stage `store`.
    """
    store = store_path(store_root, root, settings)
    slides: dict[str, SlidePatches] = {}
    failures: dict[str, Failure] = {}
    for record in records:
        if (found := load_slide(record, settings, store)) is not None:
            slides[record.slide_id] = found
        else:
            failures[record.slide_id] = Failure(
                record.slide_id, "store", ManifestError.__name__, f"{store} has no patches of this slide"
            )
    return _in_order(records, store, slides, failures)


def _extract(
    record: SlideRecord, settings: PatchSettings, store: Path, stop: threading.Event
) -> SlidePatches | Failure:
    """Cut one slide; its failure is a result, the store's an error."""
    stage = "slide"

    def on_stage(name: str) -> None:
        nonlocal stage
        if stop.is_set():
            raise _StoppedError
        stage = name

    try:
        return extract_slide(record, settings, store, on_stage)
    except (_StoppedError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and stage == "write":
            raise PandaError(_unwritable(store, error)) from error
        if not isinstance(error, PandaError):
            log.debug("slide %s", record.slide_id, exc_info=True)
        return Failure(record.slide_id, stage, type(error).__name__, str(error))


def _in_order(
    records: Sequence[SlideRecord],
    store: Path,
    slides: dict[str, SlidePatches],
    failures: dict[str, Failure],
) -> StoreResult:
    """Results in the order of the records, whichever thread was first."""
    ids = [record.slide_id for record in records]
    return StoreResult(
        store,
        {slide_id: slides[slide_id] for slide_id in ids if slide_id in slides},
        [failures[slide_id] for slide_id in ids if slide_id in failures],
    )


def _store_content(settings: PatchSettings) -> dict[str, Any]:
    """What `store.json` says."""
    return {"format": FORMAT, "tissue_rules": RULES, "settings": asdict(settings)}


def read_store(store: Path) -> PatchSettings:
    """Read how the patches of a store were cut.

    Args:
        store: The store's folder.

    Raises:
        ManifestError: It is no store, or one of another version.
    """
    path = store / STORE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = PatchSettings(**content["settings"])
        if content != _store_content(settings):
            raise ValueError(f"format {content['format']}, tissue rules {content.get('tissue_rules')}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{path} does not describe a patch store of this version ({error}); remove the folder, its patches will "
            f"be cut again"
        ) from error
    return settings


@dataclass(frozen=True)
class StoredPatches:
    """What a store holds.

    Attributes:
        store: Its folder.
        settings: How its patches were cut.
        slides: Finished ones.
        patches: Of them together.
        bytes: Of all its files.
    """

    store: Path
    settings: PatchSettings
    slides: int
    patches: int
    bytes: int


def list_stores(store_root: Path | str) -> list[StoredPatches]:
    """Say what lies in a folder of patch stores.

    Args:
        store_root: The folder of all stores.

    Raises:
        ManifestError: There is no such folder, or it holds a store that cannot be read.
    """
    root = Path(store_root)
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; data.store_root is the folder of the patch stores")
    found = []
    for path in sorted(root.glob(f"*/{STORE_FILE}")):
        store = path.parent
        finished = [entry for entry in store.glob(f"*/{SLIDE_FILE}") if entry.parent.suffix != PARTIAL]
        patches = sum(len(json.loads(entry.read_text(encoding="utf-8"))["patches"]) for entry in finished)
        size = sum(entry.stat().st_size for entry in store.rglob("*") if entry.is_file())
        found.append(StoredPatches(store, read_store(store), len(finished), patches, size))
    return found


def _prepare(store: Path, settings: PatchSettings) -> None:
    """Describe a new store, or check an old one and clear away what killed runs left half-done."""
    path = store / STORE_FILE
    if not path.is_file():
        write_whole(path, json.dumps(_store_content(settings), indent=1))
    elif read_store(store) != settings:
        raise ManifestError(
            f"{path} does not describe the settings that name its folder; remove the folder, its patches will be "
            f"cut again"
        )
    for left in [*store.glob(f"*{PARTIAL}"), *store.glob(f".*{PARTIAL}.*"), *store.glob(".*.old")]:
        remove(left)


@contextlib.contextmanager
def _writing(store: Path) -> Iterator[None]:
    """Make the store's folder; say which store it is that cannot be written."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise PandaError(_unwritable(store, error)) from error


def _unwritable(store: Path, error: OSError) -> str:
    """What is wrong with the store, and the remedy."""
    return (
        f"{store}: the patch store cannot be written ({error.strerror or error}); make room or choose another "
        f"folder with data.store_root. Finished slides are kept: run again to go on"
    )


def main(arguments: Sequence[str]) -> int:
    """`python -m panda.data.store list [STORE_ROOT]`: says what the patch stores in a folder hold."""
    parser = argparse.ArgumentParser(prog="python -m panda.data.store", description="What lies in the patch stores.")
    parser.add_argument("command", choices=["list"])
    parser.add_argument("store_root", nargs="?", default="patches", help="as data.store_root (default: patches)")
    try:
        stores = list_stores(parser.parse_args(arguments).store_root)
    except PandaError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'slides':>7} {'patches':>10} {'GB':>8}  store")
    for found in stores:
        cut = found.settings
        print(
            f"{found.slides:>7,} {found.patches:>10,} {found.bytes / 1e9:>8.2f}  {found.store}: {cut.store}, "
            f"{cut.resolution}, {cut.patch_size} px every {cut.step} px, "
            f"{cut.edge} at the edge, tissue from {cut.min_tissue:.0%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
