"""What an audit keeps of each slide, so that it need not look twice: `<SLIDE_ID>.json` and a small picture."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.audit.inspection import MADE_BY, Inspection, inspect_slide
from panda.audit.slide_table import TableRow
from panda.data.findings import Finding
from panda.errors import ManifestError, PandaError
from panda.files import fingerprint, identity, remove, write_json, write_whole
from panda.wsi.slide import SlideOptions

PICTURE_QUALITY = 85
_LONGEST_NAME = 180  # bytes; file systems take 255, a file in the making has a longer name


@dataclass(frozen=True)
class Records:
    """The records of an audit's folder. Each bears the fingerprint of all that it depends on.

    Attributes:
        folder: Where they lie.
        root: Of the data.
        options: How slides are opened.
        deep: Every tile was decoded.
    """

    folder: Path
    root: Path
    options: SlideOptions = SlideOptions()
    deep: bool = False

    def picture(self, slide_id: str) -> Path:
        """Where a slide's small picture lies, if it has one."""
        return self.folder / f"{file_stem(slide_id)}.jpg"

    def _record(self, slide_id: str) -> Path:
        return self.folder / f"{file_stem(slide_id)}.json"

    def made_from(self, row: TableRow) -> str:
        """Fingerprint of a slide's row, its two files, and how they are looked at."""
        return fingerprint(
            {
                "slide_id": row.slide_id,
                "provider": row.provider,
                "isup_grade": row.isup_grade,
                "gleason": row.gleason,
                "slide": _identity(row.image_path(self.root)),
                "mask": _identity(row.mask_path(self.root)),
                **asdict(self.options),
                "deep": self.deep,
                **MADE_BY,
            }
        )

    def is_current(self, row: TableRow) -> bool:
        """Whether there is a record, whole, of the files as they are."""
        try:
            return self._load(row.slide_id)[0] == self.made_from(row)
        except PandaError:
            return False

    def read(self, row: TableRow) -> Inspection:
        """Read what was seen of a slide; of one whose id names no file, nothing was.

        Raises:
            PandaError: The record is missing or damaged.
        """
        return self._load(row.slide_id)[1] if row.has_file else Inspection(row.slide_id, row.provider)

    def look(self, row: TableRow) -> int:
        """Look at a slide and keep what was seen, whole or not at all; the number of findings.

        Nothing that is wrong with a slide is an error here.

        Raises:
            OSError: The record cannot be written.
        """
        made_from = self.made_from(row)
        try:
            inspection, picture = inspect_slide(row, self.root, self.options, deep=self.deep)
        except MemoryError:
            raise
        except Exception as error:  # what no reader foresaw is the slide's fault all the same
            inspection, picture = _failed(row, f"{type(error).__name__}: {error}"), None
        # Told from the folder of the data on, a finding stays true where the folder is moved.
        prefix = str(self.root / "x")[:-1]  # empty for "."
        findings = tuple(
            dataclasses.replace(found, value=found.value.replace(prefix, "")) for found in inspection.findings
        )
        # What the system refused (rights, a network disk that is away) may be well the next time: look again then.
        if any("[Errno " in found.value for found in findings):
            made_from = ""
        self._keep(row, made_from, dataclasses.replace(inspection, findings=findings), picture)
        return len(findings)

    def keep_crash(self, row: TableRow) -> None:
        """Keep that looking at a slide ends the process that looks.

        Raises:
            OSError: The record cannot be written.
        """
        said = "the process that looked at it crashed, twice and the second time with nothing else to do"
        self._keep(row, self.made_from(row), _failed(row, said), None)

    def _keep(self, row: TableRow, made_from: str, inspection: Inspection, picture: NDArray[np.uint8] | None) -> None:
        if picture is None:
            remove(self.picture(row.slide_id))
        else:
            done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
            assert done
            write_whole(self.picture(row.slide_id), data.tobytes())
        write_json(self._record(row.slide_id), {"made_from": made_from, "inspection": inspection.plain()})

    def _load(self, slide_id: str) -> tuple[str, Inspection]:
        path = self._record(slide_id)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return str(content["made_from"]), Inspection.of_plain(content["inspection"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, ManifestError) as error:
            raise PandaError(
                f"{path}: is missing or damaged ({error}); run the audit again, the rest is kept"
            ) from error


def file_stem(slide_id: str) -> str:
    """Name of a slide's files in an audit: its id, or a digest of one that no file system could take."""
    return slide_id if len(os.fsencode(slide_id)) <= _LONGEST_NAME else fingerprint({"slide_id": slide_id})


def _failed(row: TableRow, said: str) -> Inspection:
    return Inspection(row.slide_id, row.provider, findings=(Finding(row.slide_id, "unopenable", said),))


def _identity(path: Path) -> dict[str, Any] | None:
    """See `panda.files.identity`; None where there is no such file."""
    try:
        return identity(path)
    except OSError:
        return None
