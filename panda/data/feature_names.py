"""Names of feature files, by which a program finds those of a slide."""

from __future__ import annotations

from pathlib import Path

from panda.data.feature_origin import FeatureFormat

BAG = ".pt"
"""Suffix of a tensor of features, which CLAM and slideflow read."""


def name_feature_file(folder: Path, slide_id: str, format: FeatureFormat = "panda") -> Path:
    """Return the path at which a program looks for the features of a slide."""
    if format == "clam":
        return folder / "h5_files" / f"{slide_id}.h5"
    return folder / f"{slide_id}{BAG if format == 'slideflow' else '.h5'}"


def name_other_file(path: Path, format: FeatureFormat) -> Path | None:
    """Return the path of the second file of a slide, which CLAM and slideflow have, or None."""
    if format == "clam":
        return path.parents[1] / "pt_files" / f"{path.stem}{BAG}"
    return name_index(path) if format == "slideflow" else None


def name_index(path: Path) -> Path:
    """Return the path of the index of slideflow for a tensor."""
    return path.with_name(f"{path.stem}.index.npz")
