"""Records of an audit: the inspection of each slide as `<SLIDE_ID>.json`, beside a small picture."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from panda.audit.inspection import RULE_VERSIONS, Inspection
from panda.audit.slide_inspector import inspect_slide
from panda.data.findings import Finding
from panda.data.slide_rows import SlideRow
from panda.errors import PandaError, raise_exhaustion
from panda.files import fingerprint, identity, remove, write_json, write_whole
from panda.stored import read_model
from panda.wsi.annotations.source import describe_classes
from panda.wsi.label_maps import get_label_maps
from panda.wsi.slide import SlideOptions

log = logging.getLogger(__name__)

PICTURE_QUALITY = 85
_LONGEST_NAME = 180  # bytes; file systems allow 255, and an unfinished file has a longer name


@dataclass(frozen=True)
class Record:
    """The inspection of a slide.

    Attributes:
        fingerprint: That of its input; empty to inspect the slide again.
        inspection: The inspection.
        picture_bytes: Size of its picture, 0 without one; None in records of an older version.
    """

    fingerprint: str
    inspection: Inspection
    picture_bytes: int | None = None


_ADAPTER = TypeAdapter(Record)


@dataclass(frozen=True)
class RecordFolder:
    """The records of an audit, in `folder`, of the data in `root`.

    With `deep` every tile of a slide is decoded and its mask is counted at level 0. With `empty_means_benign` an
    annotation file without any object means a slide without cancer.
    """

    folder: Path
    root: Path
    options: SlideOptions = SlideOptions()
    deep: bool = False
    empty_means_benign: bool = False

    def fingerprint_slide(self, row: SlideRow) -> str:
        """Return the fingerprint of a slide's row, of its two files, and of how they are inspected."""
        labels = get_label_maps().get(row.provider)
        return fingerprint(
            {
                **{key: getattr(row, key) for key in ("slide_id", "provider", "isup_grade", "gleason")},
                "slide": _identify(row.image_path),
                "mask": None if row.mask_path is None else _identify(row.mask_path),
                **asdict(self.options),
                "deep": self.deep,
                "empty_means_benign": self.empty_means_benign,
                "classes": describe_classes(row.mask_path, labels) if labels else {},
                **RULE_VERSIONS,
            }
        )

    def is_current(self, row: SlideRow) -> bool:
        """Return whether there is a record of the files as they are now, with its picture."""
        return self._read_fingerprint(row) == self.fingerprint_slide(row)

    def has_record(self, row: SlideRow) -> bool:
        """Return whether there is a record of the files as they are now, or of a slide that the system refused."""
        return self._read_fingerprint(row) in ("", self.fingerprint_slide(row))

    def read(self, row: SlideRow) -> Inspection:
        """Read the inspection of a slide; it is empty if the id cannot name a file."""
        return self._load(row.slide_id).inspection if row.has_file else Inspection(row.slide_id, row.provider)

    def inspect(self, row: SlideRow) -> int:
        """Inspect a slide, write its record, and return the number of findings; a fault is a finding, not an error."""
        slide_fingerprint = self.fingerprint_slide(row)
        try:
            inspection, picture = inspect_slide(
                row, self.options, deep=self.deep, empty_means_benign=self.empty_means_benign
            )
        except Exception as error:  # a fault that no reader expects is still a fault of the slide
            raise_exhaustion(error)
            inspection, picture = _describe_failure(row, f"{type(error).__name__}: {error}"), None
        # Paths are relative to the folder of the data, so that a finding stays true if the folder is moved.
        prefix = str(self.root / "x")[:-1]  # empty for "."
        findings = tuple(replace(found, value=found.value.replace(prefix, "")) for found in inspection.findings)
        # Errors of the system (permissions, a network disk that is away) may be gone the next time: inspect again.
        if any("[Errno " in found.value for found in findings):
            slide_fingerprint = ""
        self._write(slide_fingerprint, replace(inspection, findings=findings), picture)
        return len(findings)

    def write_crash(self, row: SlideRow) -> None:
        """Write the record of a slide whose inspection crashes its process."""
        message = "the process that inspected it crashed, with no other slide to blame"
        self._write(self.fingerprint_slide(row), _describe_failure(row, message), None)

    def _write(self, slide_fingerprint: str, inspection: Inspection, picture: NDArray[np.uint8] | None) -> None:
        path, data = self.find_picture(inspection.slide_id), b""
        if picture is None:
            remove(path)
        else:
            done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
            assert done
            data = encoded.tobytes()
            write_whole(path, data)
        record = Record(slide_fingerprint, inspection, len(data))
        write_json(path.with_suffix(".json"), _ADAPTER.dump_python(record, mode="json"))

    def find_picture(self, slide_id: str) -> Path:
        """Return the path of the picture of a slide, which need not exist; its record is beside it."""
        return self.folder / f"{make_file_stem(slide_id)}.jpg"

    def _read_fingerprint(self, row: SlideRow) -> str | None:
        """Return the fingerprint in the record of a slide; None if there is no record, or its picture is not whole."""
        try:
            record = self._load(row.slide_id)
            is_whole = not record.picture_bytes or (
                self.find_picture(row.slide_id).stat().st_size == record.picture_bytes
            )
            return record.fingerprint if is_whole else None
        except OSError:
            return None
        except PandaError as error:
            log.warning("%s", error)
            return None

    def _load(self, slide_id: str) -> Record:
        path = self.find_picture(slide_id).with_suffix(".json")
        return read_model(path, _ADAPTER, "it was edited or written by another version: run the audit again")


def make_file_stem(slide_id: str) -> str:
    """Return the stem of a slide's files in an audit: its id, or a digest if the id is too long for a file name."""
    return slide_id if len(os.fsencode(slide_id)) <= _LONGEST_NAME else fingerprint({"slide_id": slide_id})


def _describe_failure(row: SlideRow, message: str) -> Inspection:
    return Inspection(row.slide_id, row.provider, findings=(Finding(row.slide_id, "unopenable", message),))


def _identify(path: Path) -> dict[str, str | int] | None:
    """Return the identity of a file, or None if there is no such file."""
    try:
        return identity(path)
    except OSError:
        return None
