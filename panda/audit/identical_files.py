"""Slides whose files are identical to the byte."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from panda.audit.inspection import Inspection

_BLOCK = 4096  # bytes
_BLOCKS = 16


def digest_quickly(path: Path) -> str:
    """Return a digest of a file's size and of 16 blocks of 4 KiB, evenly spread over it.

    Files with different digests differ. `find_identical_files` compares those with the same one.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for at in np.linspace(0, max(0, size - _BLOCK), _BLOCKS).astype(np.int64).tolist():
            file.seek(at)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def find_identical_files(inspections: Iterable[Inspection], find_path: Callable[[str], Path]) -> list[list[str]]:
    """Find slides with identical files. Only files with the same quick digest are read.

    Args:
        inspections: The inspections of the slides.
        find_path: Slide id → its file.

    Returns:
        The ids of each group of two or more, in ascending order.

    Raises:
        OSError: If a file cannot be read any more.
    """
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for seen in inspections:
        if seen.digest is not None:
            alike[seen.digest].add(seen.slide_id)
    groups = []
    for slides in alike.values():
        whole: defaultdict[bytes, list[str]] = defaultdict(list)
        for slide_id in sorted(slides) if len(slides) > 1 else ():
            with find_path(slide_id).open("rb") as file:
                whole[hashlib.file_digest(file, "blake2b").digest()].append(slide_id)
        groups += [group for group in whole.values() if len(group) > 1]
    return sorted(groups)
