"""Hash what determines the files of slides, so that finished slides are not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from panda.app.inference_config import InferenceConfig
from panda.app.software import digest_code
from panda.files import fingerprint, identity
from panda.inference.error_regions import ERRORS_FILE
from panda.inference.slide_score import SCORE_FILE


def fingerprint_command(config: InferenceConfig) -> str:
    """Return a hash of all that decides the provenance of a run on one kind of machine: keys, checkpoints, code."""
    networks = [network and network.fingerprint for network in (config.segmentation, config.grading)]
    keys = config.model_dump(mode="json", exclude={"slides", "shard", "cluster", "output", "run_dir", "debug"})
    return fingerprint({"keys": keys, "networks": networks, "code": digest_code()})


def hash_slides(
    paths: Iterable[Path],
    known: Mapping[str, Any],
    describe_label: Callable[[Path], Mapping[str, Any] | None] = lambda _: None,
) -> dict[str, str]:
    """Return a hash of everything that determines the files of a slide, by slide; empty if a file is missing.

    The hash of a label, if there is one, follows that of the rest. Slides are not opened. A slide counts by name, size
    and time of change.

    Args:
        paths: The slides.
        known: Everything but the file of the slide and its label.
        describe_label: Returns what determines the label of a slide; None without one.
    """

    def find_key(path: Path) -> str:
        try:
            key, label = fingerprint({"slide": identity(path), **known}), describe_label(path)
            return f"{key}/{fingerprint(label)}" if label else key
        except (OSError, UnicodeEncodeError):
            return ""  # it fails when it is opened

    return {path.stem: find_key(path) for path in paths}


def find_keys(config: InferenceConfig, made_with: str) -> dict[str, str]:
    """Return the hashes of the slides of an inference, see `hash_slides`. A label mask counts as its slide does.

    Args:
        config: The configuration; the slides are those of its shard.
        made_with: Fingerprint of the provenance.
    """
    networks = {"segmentation": config.segmentation.metadata, "grader": config.grading and config.grading.metadata}
    settings = fingerprint(
        {key: network and network.model_dump(mode="json") for key, network in networks.items()}
        | {"made_with": made_with, "version": version("panda-wsi")}
        | {"colour_map": config.colour_map, "geojson": config.geojson}
    )

    def describe_label(path: Path) -> dict[str, Any] | None:
        if (record := config.labelled.get(path.stem)) is None:
            return None
        return {
            "mask": record.mask_path and identity(record.mask_path),
            "files": (SCORE_FILE, ERRORS_FILE),
            **{key: getattr(record, key) for key in ("slide_id", "provider", "isup_grade")},
        }

    return hash_slides(config.own_slides, {"settings": settings}, describe_label)
