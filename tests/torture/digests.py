"""Digests of outputs, to compare a disturbed run with an undisturbed one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

HIDDEN = (".lock", ".partial", ".old", ".sums", ".records")
"""Parts of the names of files in the making, of locks, and of records, whose names are random."""
DATED = {"date", "created", "seconds", "started", "finished", "mtime_ns", "versions"}
"""Keys whose values depend on the clock or the machine."""
LOGS = {".log", ".html"}
"""Suffixes of files that hold the time of their making."""


def digest_folder(folder: Path) -> dict[str, str]:
    """Return the digest of each finished file of a folder, or of one file, without dates."""
    if folder.is_file():
        return {folder.name: digest_file(folder)}
    return {
        str(path.relative_to(folder)): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in LOGS
        and path.name not in {"overrides.txt", "config.yaml", "error.json"}
        and not any(mark in part for mark in HIDDEN for part in path.relative_to(folder).parts)
    }


def digest_file(path: Path) -> str:
    """Return the digest of a file; of JSON and checkpoints that of their content without dates."""
    if path.suffix == ".ckpt":
        content = torch.load(path, weights_only=True)
        kept = {key: content[key] for key in ("state_dict", "optimizer_states", "epoch", "global_step", "panda")}
        return _hash(repr(_strip_dates(kept)).encode())
    if path.suffix == ".json":
        return _hash(json.dumps(_strip_dates(json.loads(path.read_bytes())), sort_keys=True).encode())
    return _hash(path.read_bytes())


def _strip_dates(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip_dates(entry) for key, entry in value.items() if key not in DATED}
    if isinstance(value, list | tuple):
        return [_strip_dates(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return _hash(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def compare(expected: dict[str, str], found: dict[str, str]) -> str:
    """Return in words which files differ; empty if none does."""
    missing = sorted(set(expected) - set(found))
    more = sorted(set(found) - set(expected))
    other = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    named = (("missing", missing), ("too many", more), ("different", other))
    return "; ".join(f"{what}: {', '.join(names[:4])}{' …' * (len(names) > 4)}" for what, names in named if names)
