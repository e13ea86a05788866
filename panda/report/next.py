"""Choose the slides and fields to correct next: `python -m panda.report.next out/fold0 out/fold1 …`.

The fields are those in which maps of several checkpoints disagree most, a map is wrong, or it is least certain. They
come back as training masks through `panda.data.corrections`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from panda.choices import name_tool
from panda.data.manifest import SlideRecord, read_labels
from panda.data.mapped_slide import RESULT_FILE, MappedSlide
from panda.errors import ManifestError, PandaError
from panda.files import write_whole
from panda.inference.field_export import describe_fields, outline_field
from panda.inference.field_grid import LEAST_TISSUE, FieldBox
from panda.inference.field_maps import MapSource, OpenedSlide, find_slides, open_maps
from panda.inference.field_scores import Reason
from panda.progress import Progress
from panda.report.fields_page import draw_field, write_fields_page
from panda.report.page import require_folder
from panda.report.run_folder import Picture
from panda.tables import write_table
from panda.wsi.annotations.file import Annotation
from panda.wsi.annotations.source import read_annotations
from panda.wsi.geometry import round_px
from panda.wsi.label_maps import LabelMap

REGIONS, FIELDS = "regions.geojson", "fields.geojson"
_NOTHING: dict[Reason, str] = {
    "errors": "no map differs from the labels",
    "disagreement": "the maps agree; give maps of other folds or seeds, or --by confidence",
    "confidence": "no probability is that near to its threshold; give a larger --near, several folders, or --labels",
}


@dataclass(frozen=True)
class Request:
    """What to choose fields from, and how.

    Attributes:
        folders: Folders that `infer.py` wrote for the same slides. Outlines to correct are those of the first one.
        slides: The folder of the slides, or the only slide.
        labels: A folder in PANDA's layout, or a table of slides with masks; None without labels.
        reason: What fields are chosen for; None for errors if there are labels, else disagreement of several folders,
            else confidence.
        side_um: Side of a field, µm.
        count: Largest number of fields.
        per_slide: Largest number of fields of a slide.
        near: Distance from the threshold below which a probability is uncertain.
    """

    folders: tuple[Path, ...]
    slides: Path
    labels: Path | None = None
    reason: Reason | None = None
    side_um: float = 500.0
    count: int = 20
    per_slide: int = 5
    near: float = 0.1

    def choose_reason(self) -> Reason:
        """Return the reason, or raise `PandaError` if nothing given can have it, or a value is out of range."""
        faults = []
        if self.reason == "errors" and self.labels is None:
            faults.append("--by errors: there are no labels: give --labels")
        if self.reason == "disagreement" and len(self.folders) < 2:
            faults.append("--by disagreement: there is one folder: give maps of the same slides by several checkpoints")
        if len({folder.resolve() for folder in self.folders}) < len(self.folders):
            faults.append("a folder is given twice: give each once")
        limits = {"side": self.side_um, "count": self.count, "per-slide": self.per_slide, "near": self.near}
        wrong = {key: value for key, value in limits.items() if not 0 < value < math.inf}
        faults += [f"--{key}={value:g}: give a finite number above 0" for key, value in wrong.items()]
        if faults:
            raise PandaError("\n".join(faults))
        return self.reason or ("errors" if self.labels else "disagreement" if len(self.folders) > 1 else "confidence")


@dataclass(frozen=True)
class Field:
    """A field: its slide, its place, and its figures as columns of the table."""

    slide_id: str
    box: FieldBox
    row: dict[str, Any]


@dataclass(frozen=True)
class Ranking:
    """The fields and the rows of the slides, highest score first, and why slides were left out, by their names."""

    fields: list[Field]
    slides: list[dict[str, Any]]
    left_out: dict[str, str]


def rank_fields(request: Request, source: MapSource, reason: Reason) -> Ranking:
    """Choose the fields. A slide that cannot be read is left out.

    Raises:
        PandaError: If no slide can be read, with all their faults, or no field has a score.
    """
    fields: list[Field] = []
    slides, left_out, labelled = [], dict[str, str](), 0
    for slide_id in Progress(find_slides(request.folders), "score maps"):
        try:
            with open_maps(source, slide_id) as opened:
                labelled += opened.maps.label is not None
                chosen, areas = opened.maps.choose_fields(reason, request.side_um, request.per_slide)
                if chosen:
                    _read_regions(source, slide_id)
                fields += [_make_field(opened, box, reason) for box in chosen]
                row: dict[str, Any] = {"slide_id": slide_id, **opened.convert(areas, reason)}
                share = 100 * row["score_mm2"] / row["tissue_mm2"] if row["tissue_mm2"] else None
                confidence = {"grade_confidence": opened.grade_confidence}
                slides.append(row | {"score_percent_of_tissue": share} | confidence)
        except (PandaError, OSError) as error:
            left_out[slide_id] = str(error)
    faults = list(left_out.values())
    if slides and request.labels is not None and not labelled:
        faults.append(f"--labels={request.labels}: none of the {len(slides)} slides has a mask there")
    elif slides and not fields:
        of = f"of {request.side_um:g} µm with at least {LEAST_TISSUE:.0%} tissue on {len(slides)} slides"
        faults.append(f"there is no field to correct, {of}: {_NOTHING[reason]}")
    if len(faults) > len(left_out) or not slides:
        raise ManifestError("\n".join(faults))
    fields.sort(key=lambda field: (-field.row["score_mm2"], field.slide_id, field.box.y, field.box.x))
    slides.sort(key=lambda row: (-row["score_mm2"], row["slide_id"]))
    return Ranking(fields[: request.count], slides, left_out)


def _make_field(opened: OpenedSlide, box: FieldBox, reason: Reason) -> Field:
    maps = opened.maps
    left, top, right, bottom = map(round_px, outline_field(box, maps.resolution))
    area = box.width * box.height * (maps.resolution.pixel_area_um2 or 0.0) / 1e6
    place = {"x": left, "y": top, "width": right - left, "height": bottom - top, "reason": reason}
    return Field(opened.slide_id, box, place | opened.convert(maps.measure(box), reason) | {"area_mm2": area})


def choose_next(request: Request, output: Path) -> tuple[Path, dict[str, str]]:
    """Choose the fields to correct next and write them.

    Args:
        request: The maps.
        output: A new folder. It gets `fields.csv`, `slides.csv`, `fields.html` and, in a folder for each slide with
            fields, `fields.geojson` for QuPath and the `quantification.json` of the map.

    Returns:
        The page, and why slides were left out, by their names.

    Raises:
        PandaError: If the folders do not fit each other, no slide can be read, there is no field, or `output` holds
            files. Nothing is written then.
    """
    reason = request.choose_reason()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PandaError(f"{output} exists and is not empty; it may hold corrections: give another --output")
    for folder in request.folders:
        require_folder(folder, "the output of infer.py")
    source = MapSource(request.folders, request.slides, _read_records(request), request.near)
    ranking = rank_fields(request, source, reason)
    fields, slides = ranking.fields, ranking.slides
    names = [f"field {number}" for number in range(1, len(fields) + 1)]
    slide_ids = list(dict.fromkeys(field.slide_id for field in fields))
    described, pictures = {}, dict[str, Picture]()
    for slide_id in slide_ids:
        own = {name: field.box for name, field in zip(names, fields, strict=True) if field.slide_id == slide_id}
        described[slide_id], of_slide = _describe_slide(source, slide_id, own)
        pictures |= of_slide
    for slide_id, text in described.items():
        (output / slide_id).mkdir(parents=True)
        write_whole(output / slide_id / FIELDS, text)
        write_whole(output / slide_id / RESULT_FILE, (request.folders[0] / slide_id / RESULT_FILE).read_bytes())
    rows = [{"rank": number, "slide_id": field.slide_id, **field.row} for number, field in enumerate(fields, start=1)]
    for row in slides:
        row["fields"] = sum(field.slide_id == row["slide_id"] for field in fields)
    write_table(output / "fields.csv", rows)
    write_table(output / "slides.csv", slides)
    commands = _list_commands(request, reason, output)
    drawn = [pictures[name] for name in names]
    page = write_fields_page(
        output, rows, slides, drawn, folders=request.folders, commands=commands, left_out=ranking.left_out
    )
    return page, ranking.left_out


def _list_commands(request: Request, reason: Reason, output: Path) -> list[tuple[str, str]]:
    """Return the command that makes the page, and the one that follows, for the head of the page."""
    given = {"labels": request.labels, "by": reason, "side": f"{request.side_um:g}", "count": request.count}
    given |= {"per-slide": request.per_slide, "near": f"{request.near:g}", "slides": request.slides, "output": output}
    options = [str(word) for key, value in given.items() if value is not None for word in (f"--{key}", value)]
    made = name_tool("panda.report.next", *request.folders, *options)
    exported = f"{shlex.quote(str(output))}/*/corrected.geojson"
    to = shlex.join(["--slides", str(request.slides), "--output", "corrected"])
    return [("Made by", made), ("Take corrections", f"{name_tool('panda.data.corrections')} {exported} {to}")]


def _read_records(request: Request) -> list[SlideRecord]:
    """Return the slides that have a mask."""
    if request.labels is None:
        return []
    label_maps: dict[str, LabelMap] = {}
    for slide_id in find_slides(request.folders):
        with contextlib.suppress(PandaError):  # it is named when the slide is opened
            label_maps |= MappedSlide.read(request.folders[0] / slide_id).label_maps
    found = read_labels(request.labels, label_maps, needs_slides=False)
    return [record for record in found if record.mask_path is not None and record.mask_path.is_file()]


def _read_regions(source: MapSource, slide_id: str) -> Sequence[Annotation]:
    """Return the regions of the first map of a slide."""
    regions = read_annotations(source.folders[0] / slide_id / REGIONS)
    regions.raise_faults()
    return regions.annotations


def _describe_slide(source: MapSource, slide_id: str, fields: dict[str, FieldBox]) -> tuple[str, dict[str, Picture]]:
    """Return the GeoJSON of a slide and the pictures of its fields, by their names."""
    regions = _read_regions(source, slide_id)
    with open_maps(source, slide_id) as opened:
        slide, maps = opened.slide, opened.maps
        classes = maps.canvases[0].classes
        text = describe_fields(slide, maps.resolution, fields, regions, classes)
        return text, {name: draw_field(slide, maps, field) for name, field in fields.items()}


def main(arguments: Sequence[str]) -> int:
    """Run `python -m panda.report.next`, see its --help."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.report.next"), description="Choose the slides and fields to correct next."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, help="folders of infer.py for the same slides, one a checkpoint"
    )
    parser.add_argument("--slides", required=True, type=Path, help="the slide, or the folder of the slides")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the fields")
    parser.add_argument("--labels", type=Path, help="folder in PANDA's layout, or table of slides with masks")
    parser.add_argument("--by", choices=get_args(Reason), help="reason (default: the first that the rest allows)")
    parser.add_argument("--side", type=float, default=Request.side_um, help="side of a field in µm (default: 500)")
    parser.add_argument("--count", type=int, default=Request.count, help="number of fields (default: 20)")
    parser.add_argument("--per-slide", type=int, default=Request.per_slide, help="most of one slide (default: 5)")
    parser.add_argument(
        "--near", type=float, default=Request.near, help="distance from the threshold that is uncertain (default: 0.1)"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    request = Request(
        tuple(given.folders), given.slides, given.labels, given.by, given.side, given.count, given.per_slide, given.near
    )
    try:
        page, left_out = choose_next(request, given.output)
    except (PandaError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"fields: {page}")
    for slide_id, why in left_out.items():
        print(f"{slide_id} is left out: {why}", file=sys.stderr)
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
