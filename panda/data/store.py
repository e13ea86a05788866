"""The patch store: the patches of many slides under one set of settings.

`<store_root>/<name of the data folder>-<fingerprint>` holds `store.json` (the settings), one folder a slide
(`panda.data.patches`) and `splits/` (`panda.data.patch_manifests`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from panda.choices import name_tool
from panda.data.failures import Failure
from panda.data.manifest import SlideRecord
from panda.data.patches import SlidePatches, load_slide
from panda.data.settings import PatchSettings
from panda.data.slide_entry import SLIDE_FILE, SlideEntry
from panda.errors import ConfigError, ManifestError, PandaError
from panda.files import advise_removal, fingerprint, remove_leftovers, write_whole
from panda.wsi.tissue import RULES

FORMAT = 4
"""Version of the store's layout; another version gives another folder."""
STORE_FILE = "store.json"


@dataclass(frozen=True)
class StoreResult:
    """The patches of slides in a store by slide id, and the slides that have none; both in the order of the records."""

    store: Path
    slides: dict[str, SlidePatches]
    failures: list[Failure]


def locate_store(store_root: Path | str, root: Path | str, settings: PatchSettings) -> Path:
    """Return the folder of the store for a data folder and settings; other settings never share it.

    It is `<store_root>/<name of root>-<12 hexadecimal digits>`.
    """
    return Path(store_root) / f"{Path(root).resolve().name}-{fingerprint(_describe_store(settings))[:12]}"


def load_store(
    records: Sequence[SlideRecord], settings: PatchSettings, store_root: Path | str, root: Path | str
) -> StoreResult:
    """Read the patches of an earlier `extract_store`; a slide without patches is a failure of the stage `store`."""
    store = locate_store(store_root, root, settings)
    slides: dict[str, SlidePatches] = {}
    failures: list[Failure] = []
    for record in records:
        if (found := load_slide(record, settings, store)) is not None:
            slides[record.slide_id] = found
        else:
            message = f"{store} has no patches of this slide"
            failures.append(Failure(record.slide_id, "store", ManifestError.__name__, message))
    return StoreResult(store, slides, failures)


def _describe_store(settings: PatchSettings) -> dict[str, Any]:
    """Return the content of `store.json`."""
    return {"format": FORMAT, "tissue_rules": RULES, "settings": settings.model_dump(mode="json")}


def read_store(store: Path) -> PatchSettings:
    """Read how the patches of a store were cut; raise `ManifestError` if it is no store, or of another version."""
    path = store / STORE_FILE
    try:
        content = from_json(path.read_bytes())
        settings = PatchSettings(**content["settings"])
        if content != _describe_store(settings):
            raise ValueError(f"format {content['format']}, tissue rules {content.get('tissue_rules')}")
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ManifestError(
            f"{path} does not describe a patch store of this version ({error}); {_advise(store)}"
        ) from error
    return settings


@dataclass(frozen=True)
class StoredPatches:
    """The size of a patch store: its finished slides, their patches, and the bytes of all files."""

    store: Path
    settings: PatchSettings
    slides: int
    patches: int
    bytes: int


def list_stores(store_root: Path | str) -> tuple[list[StoredPatches], list[str]]:
    """Measure all patch stores of a folder.

    Returns:
        The stores of this version, and why each other store cannot be read.

    Raises:
        ManifestError: If there is no such folder.
    """
    root = Path(store_root)
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; data.store_root is the folder of the patch stores")
    found, faults = [], []
    for store in sorted(path for path in root.iterdir() if (path / STORE_FILE).is_file()):
        try:
            settings = read_store(store)
            finished = [file.parent for file in store.glob(f"*/{SLIDE_FILE}") if not file.parent.name.startswith(".")]
            patches = sum(len(SlideEntry.read(folder).patches) for folder in finished)
        except PandaError as error:
            faults.append(str(error))
            continue
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        found.append(StoredPatches(store, settings, len(finished), patches, size))
    return found, faults


def prepare_store(store: Path, settings: PatchSettings) -> None:
    """Describe a new store, or check an old one and remove the unfinished folders of killed runs."""
    path = store / STORE_FILE
    if not path.is_file():
        write_whole(path, json.dumps(_describe_store(settings), indent=1))
    elif read_store(store) != settings:
        raise ManifestError(f"{path} does not describe the settings that name its folder; {_advise(store)}")
    remove_leftovers(store)


def _advise(store: Path) -> str:
    """Return the remedy for a store that cannot be used."""
    return advise_removal(store, STORE_FILE, "choose another folder with data.store_root; patches will be cut again")


def describe_unwritable(store: Path, error: OSError) -> str:
    """Return the message for a store that cannot be written, with the remedy."""
    return (
        f"{store}: the patch store cannot be written ({error.strerror or error}); make room or choose another "
        f"folder with data.store_root. Finished slides are kept: run again to continue"
    )


def main(arguments: Sequence[str]) -> int:
    """Run `python -m panda.data.store list [STORE_ROOT]`: print the size of each patch store of a folder."""
    parser = argparse.ArgumentParser(prog=name_tool("panda.data.store"), description="List patch stores.")
    parser.add_argument("command", choices=["list"])
    parser.add_argument("store_root", nargs="?", default="patches", help="as data.store_root (default: patches)")
    try:
        stores, faults = list_stores(parser.parse_args(arguments).store_root)
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
    for fault in faults:
        print(f"old or damaged: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
