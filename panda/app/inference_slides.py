"""Find the slides that inference maps, and the label masks that they are scored against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from panda.data.manifest import SlideRecord, read_labels
from panda.data.slide_files import SLIDE_SUFFIXES, sort_slide_files
from panda.data.slide_rows import ID_COLUMNS, TABLE, find_id_column
from panda.errors import ConfigError, ManifestError
from panda.files import find_paths
from panda.settings import Names, Text, format_value, quote
from panda.tables import read_user_table
from panda.tasks.checkpoint import Checkpoint
from panda.tasks.metadata import SegmentationMetadata

SlideNames = Text | Names
"""What `slides` holds: one text, or several."""


class FoundSlides(NamedTuple):
    """Paths of slides in a fixed order, and the files that were passed over in words, empty if there are none."""

    paths: list[Path]
    passed_over: str


def find_slides(given: str | Sequence[str]) -> FoundSlides:
    """Find the slides that `slides=` names.

    It names a slide, a folder of slides, a folder in PANDA's layout, a glob, or a CSV, or several of them. A CSV has a
    column `path`, or a column `slide_id` or `image_id` of slides that are in `train_images/` or next to the table.
    Several files of one slide count once, see `sort_slide_files`. Files of a folder or glob that are no slides are
    passed over.

    A slide that a CSV names is returned even if it does not exist, so that its absence is recorded.
    """
    if not given:
        raise ConfigError("slides=[] names no slide; give a slide, a folder, a quoted glob or a CSV")
    parts = [_find_named(given)] if isinstance(given, str) else _find_each(given)
    found = list(dict.fromkeys(path for part in parts for path in part.paths))
    twice = [name for name, count in Counter(p.stem for p in found).items() if count > 1]
    if twice:
        raise ConfigError(
            f"slides={format_value(given)}: several slides are named {', '.join(map(repr, sorted(twice)[:5]))}; "
            "results go by name"
        )
    return FoundSlides(found, "; ".join(part.passed_over for part in parts if part.passed_over))


def _find_each(given: Sequence[str]) -> list[FoundSlides]:
    """Find the slides of several texts, which may be one path with commas."""
    parts, faults = [], list[str]()
    for text in given:
        try:
            parts.append(_find_named(text))
        except ConfigError as error:
            faults += error.faults
    if faults and len(given) > 1:
        faults[-1] += f"; quote a path that has commas: {quote('slides=' + ','.join(given))}"
    if faults:
        raise ConfigError(faults)
    return parts


def _find_named(given: str) -> FoundSlides:
    """Find the slides of one text, see `find_slides`."""
    path = Path(given)
    if path.is_file() and path.suffix.lower() == ".csv":
        listed = _read_slide_table(path)
        files = replace(sort_slide_files(listed), others=())
        found, passed_over = [path for path in listed if path not in set(files.members)], files.describe_passed_over()
    elif path.is_file():
        found, passed_over = [path], ""
    else:
        if path.is_dir():
            folder = path / "train_images" if (path / "train_images").is_dir() else path
            files = sort_slide_files(folder.iterdir())
        else:
            files = sort_slide_files(find_paths(given))
        found, passed_over = list(files.slides), files.describe_passed_over()
    if not found:
        raise ConfigError(
            f"slides={given}: no slide found{passed_over and f' (passed over: {passed_over})'}; give a slide, a folder "
            f"of {', '.join(SLIDE_SUFFIXES[:3])} … files, a quoted glob such as 'slides/*.svs', or a CSV with a column "
            "path or slide_id" + describe_brackets(given)
        )
    return FoundSlides(found, passed_over)


def describe_brackets(given: str) -> str:
    """Return how a glob names a file with a bracket, as the end of a message about a glob that found too little."""
    return "; in a glob, write [[] for a [ in a name" if "[" in given else ""


def _read_slide_table(table: Path) -> list[Path]:
    """Return the paths of the slides that a CSV names."""
    numbered = read_user_table(table, (), ("path", *ID_COLUMNS), may_be_empty=True)
    rows = [row for _, row in numbered]
    key = "path" if not rows or "path" in rows[0] else find_id_column(table, rows[0])
    empty = [number for number, row in numbered if not row[key]]
    if empty:
        raise ManifestError(f"{table}: line {empty[0]} has no {key}; fill it in or remove the line")
    if key == "path":
        return [table.parent / row["path"] for row in rows]
    folder = table.parent / "train_images"
    folder = folder if folder.is_dir() else table.parent
    if unsafe := [row[key] for row in rows if Path(row[key]).name != row[key]]:
        raise ManifestError(f"{table}: {key} {unsafe[0]!r} is a path; give the slide's name alone, or a column path")
    return [folder / f"{row[key]}.tiff" for row in rows]


def check_labels_source(source: str | None) -> None:
    """Check that `labels`, if it is given, is a folder in PANDA's layout or a table of slides."""
    if source is not None and not Path(source).is_file() and not (Path(source) / TABLE).is_file():
        raise ConfigError(
            f"labels={source}: there is no {Path(source) / TABLE}; give the folder that holds {TABLE} and "
            "train_label_masks/ of these slides, or a CSV with the columns path and mask, or leave it out"
        )


def find_labelled_slides(
    source: str | None, paths: Sequence[Path], checkpoint: Checkpoint[SegmentationMetadata]
) -> dict[str, SlideRecord]:
    """Return the slides that have labels in a folder in PANDA's layout or in a table, by the name of their file.

    A row is that of a slide if it names the same file, or else if its id is the slide's name. See `read_labels`
    for the providers.
    """
    if source is None:
        return {}
    check_labels_source(source)
    records = read_labels(source, checkpoint.metadata.label_maps)
    by_id = {record.slide_id: record for record in records}
    by_file = {record.image_path.resolve(): record for record in records}
    found = {path.stem: by_file.get(path.resolve()) or by_id.get(path.stem) for path in paths}
    labelled = {name: one for name, one in found.items() if one and one.mask_path and one.mask_path.is_file()}
    if not labelled:
        listed = sum(one is not None for one in found.values())
        raise ConfigError(
            f"labels={source}: none of the {len(found)} slides has a mask there ({listed} are in its table); give "
            "the folder that holds train.csv and train_label_masks/ of these slides, or a CSV with the columns path "
            "and mask, or leave it out"
        )
    return labelled
