"""The folder of an extraction of features: its settings, and a record of each slide."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from panda.data.feature_names import name_feature_file, name_other_file
from panda.data.feature_origin import FeatureFormat, FeatureOrigin
from panda.data.slide_entry import FileIdentity
from panda.errors import ConfigError, PandaError
from panda.files import advise_removal, fingerprint, hold_lock, remove_leftovers, write_json
from panda.settings import format_value
from panda.stored import Digest, Making, PatchSide, PathText, Plain, Timestamp, read_model
from panda.tasks.figures import make_timestamp
from panda.wsi.geometry import Part, round_px
from panda.wsi.mpp import SlideMpp
from panda.wsi.readers import ReaderName
from panda.wsi.slide import ResolutionRequest
from panda.wsi.stain_normalization import STAIN_RULES, NormalizeName
from panda.wsi.tissue import RULES, How

log = logging.getLogger(__name__)

SUMMARY, TABLE, RECORDS = "features.json", "features.csv", "slides"
VERSION = 1
"""To be raised by each change that gives other features; folders made before are refused then."""
_RECORD_REMEDY = "it was edited or written by another version: the tiles of the slide are encoded again"


class TilePlan(Plain, frozen=True):
    """The tiles of a slide and how they are read.

    Attributes:
        tile_size: Side of a tile in px of the resolution.
        level: Pyramid level of the tiles; None if `mpp` is given.
        mpp: µm/px of the tiles; None if `level` is given.
        overlap: Share of a tile that it shares with the next one.
        min_tissue: Least share of tissue in a tile.
        normalize: How colours are normalized, or None.
        reader: The reader that was asked for.
    """

    tile_size: PatchSide
    level: NonNegativeInt | None
    mpp: PositiveFloat | None
    overlap: Annotated[float, Field(ge=0, lt=1)]
    min_tissue: Part
    normalize: NormalizeName | None
    reader: ReaderName

    @property
    def request(self) -> ResolutionRequest:
        """The resolution of the tiles."""
        return ResolutionRequest(self.level, self.mpp)

    @property
    def overlap_px(self) -> int:
        """Overlap of neighbouring tiles in px of the resolution."""
        return min(round_px(self.tile_size * self.overlap), self.tile_size - 1)

    @property
    def stride(self) -> int:
        """Distance of neighbouring tiles in px of the resolution."""
        return self.tile_size - self.overlap_px


class FeatureSettings(Plain, frozen=True):
    """Everything but the slides that determines the files of a folder.

    Attributes:
        format: Format of the files.
        plan: The tiles.
        origin: The encoder; the fields on tiles are None.
        rules: Versions of the rules by which features are made, tissue is found and colours are normalized.
    """

    format: FeatureFormat
    plan: TilePlan
    origin: FeatureOrigin
    rules: dict[str, int] = Field(default_factory=lambda: {"features": VERSION, "tissue": RULES, "stain": STAIN_RULES})

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        return fingerprint(self.model_dump(mode="json", include=set(FeatureSettings.model_fields)))

    def list_values(self) -> dict[str, Any]:
        """Return the settings as one level of keys and values."""
        origin = self.origin.model_dump(mode="json", exclude_none=True, exclude={"format"})
        return (
            {"format": self.format}
            | origin
            | self.plan.model_dump(mode="json")
            | {f"{name}_rules_version": number for name, number in self.rules.items()}
        )

    def describe_difference(self, now: FeatureSettings) -> str:
        """Return what other settings have instead, as a list of `key=before (now=…)`; empty if they are the same.

        Weights are compared only if both are known.
        """
        own, others = self.list_values(), now.list_values()
        keys = [key for key in own | others if key != "weights" or {key} <= own.keys() & others.keys()]
        changed = [key for key in keys if own.get(key) != others.get(key)]
        return ", ".join(f"{key}={_show(own.get(key))} (now {_show(others.get(key))})" for key in changed)


def _show(value: Any) -> str:
    return format_value(value[:12] if isinstance(value, str) and len(value) == 64 else value)  # of a hash the beginning


class FeatureSummary(Making, FeatureSettings, frozen=True):
    """The content of `features.json`: the settings of a folder, and the notes for its reader.

    Attributes:
        device: Where the encoder ran.
        date: Time of the last run.
        notes: What a reader of the features should know, in sentences.
    """

    device: str
    date: Timestamp
    notes: list[str]


def read_summary(folder: Path) -> FeatureSummary:
    """Read `features.json` of a folder.

    Raises:
        FileNotFoundError: If it has none.
        PandaError: If the file was edited or written by another version.
    """
    remedy = f"it was edited or written by another version: {_advise(folder)}"
    return read_model(folder / SUMMARY, TypeAdapter(FeatureSummary), remedy)


def _advise(folder: Path) -> str:
    return advise_removal(folder, SUMMARY, "give an output of its own")


class FeatureRecord(Plain, frozen=True):
    """The features of one slide.

    Attributes:
        made_with: Fingerprint of the settings.
        slide: The file of the slide.
        file: The file of features, relative to the folder.
        bytes: Its size.
        beside: Sizes in bytes of the other files of the slide, by their paths relative to the folder.
        tiles: Number of tiles.
        dim: Number of features of a tile.
        mpp: µm/px of the tiles, None if unknown.
        mpp_override: µm/px of level 0 that was given, None if the slide states its own.
        tile_um: Side of a tile in µm, None if unknown.
        tile_px0: Side of a tile in level-0 px.
        tissue_how: How the tissue was found.
        seconds: Time since the slide before was complete.
        notes: What a reader should know of the slide.
    """

    slide_id: Annotated[str, Field(min_length=1)]
    made_with: Digest
    slide: FileIdentity
    file: PathText
    bytes: NonNegativeInt
    beside: dict[str, NonNegativeInt] = Field(default_factory=dict)
    tiles: PositiveInt
    dim: PositiveInt
    mpp: PositiveFloat | None
    mpp_override: SlideMpp | None
    tile_um: PositiveFloat | None
    tile_px0: PositiveFloat
    tissue_how: How
    seconds: NonNegativeFloat
    notes: tuple[str, ...] = Field(default=(), strict=False)


@dataclass(frozen=True)
class FeatureOutput:
    """The files of an extraction. Files of other settings are refused, never mixed in or replaced.

    Attributes:
        path: The folder.
        settings: The settings of its files.
        mpp_override: µm/px of level 0 for slides that state none.
    """

    path: Path
    settings: FeatureSettings
    mpp_override: float | None = None

    def find_fault(self) -> str | None:
        """Return why files of these settings cannot be added, or None."""
        try:
            before = read_summary(self.path)
        except FileNotFoundError:
            return None
        except PandaError as error:
            return str(error)
        if other := before.describe_difference(self.settings):
            return f"output={self.path} has features of other settings: {other}; {_advise(self.path)}"
        return None

    def summarize(self, device: str, notes: Sequence[str], making: Making) -> FeatureSummary:
        """Return the settings with a device, the time now, notes, and how they were made."""
        return FeatureSummary(
            **{key: getattr(self.settings, key) for key in FeatureSettings.model_fields},
            device=device,
            date=make_timestamp(),
            notes=list(notes),
            **dict(making),
        )

    def write_summary(self, summary: FeatureSummary) -> None:
        """Write `features.json`, unless the folder has files of other settings.

        Raises:
            ConfigError: If it has.
        """
        with hold_lock(self.path / SUMMARY):
            if fault := self.find_fault():
                raise ConfigError(fault)
            write_json(self.path / SUMMARY, summary.model_dump(mode="json"))

    def find_file(self, slide_id: str) -> Path:
        """Return the path of the features of a slide, which need not exist."""
        return name_feature_file(self.path, slide_id, self.settings.format)

    def find_record(self, slide: Path, level: int = logging.DEBUG) -> FeatureRecord | None:
        """Return the record of a slide if its features are complete and of the file as it is now.

        The slide is not opened, because that would take long for a whole data set.

        Args:
            slide: The file of the slide.
            level: Level of the messages on features that are not of the slide as it is now.
        """
        try:
            record = self.read_record(slide.stem)
            found = FileIdentity.read(slide)
        except OSError:
            return None  # a slide that is missing fails when it is opened
        except PandaError as error:
            log.log(level, "%s", error)
            return None
        if record.made_with != self.settings.fingerprint or record.mpp_override not in (None, self.mpp_override):
            return None
        if record.slide != found:
            log.log(level, "%s has changed since its tiles were encoded (%s): again", slide, record.slide)
            return None
        return record

    def find_state(self, slide_id: str) -> str:
        """Return a text that changes with the files of a slide; empty if features or record are missing."""
        try:
            paths = [self._find_record_file(slide_id), self.find_file(slide_id)]
            paths += [path for path in self.list_beside(slide_id) if path.exists()]
            states = [path.stat() for path in paths]
        except OSError:
            return ""
        return " ".join(f"{state.st_size}/{state.st_mtime_ns}" for state in states)

    def write_record(self, record: FeatureRecord) -> None:
        """Write the record of a slide, whose features are written."""
        write_json(self._find_record_file(record.slide_id), record.model_dump(mode="json"))

    def remove_leftovers(self, slide_id: str) -> None:
        """Remove what a killed process left of a slide, whose lock is held; the lock removes that of `find_file`."""
        for path in (self._find_record_file(slide_id), *self.list_beside(slide_id)):
            remove_leftovers(path.parent, path.name)

    def list_slides(self) -> Iterator[str]:
        """Yield the names of the slides that have a record."""
        for path in (self.path / RECORDS).glob("*.json"):
            yield path.stem

    def read_record(self, slide_id: str) -> FeatureRecord:
        """Read the record of a slide.

        Raises:
            OSError: If it or its features are missing.
            PandaError: If it is of another version or another slide, or its features were changed.
        """
        path = self._find_record_file(slide_id)
        record = read_model(path, TypeAdapter(FeatureRecord), _RECORD_REMEDY)
        sizes = {record.file: record.bytes, **record.beside}
        changed = [name for name, size in sizes.items() if (self.path / name).stat().st_size != size]
        if record.slide_id != slide_id or changed:
            named = f" ({changed[0]})" if changed else ""
            raise PandaError(f"{path}: the features of its slide were changed{named}; its tiles are encoded again")
        return record

    def find_picture(self, slide_id: str) -> Path:
        """Return the path of the picture of the tiles of a slide, which need not exist."""
        return self._find_record_file(slide_id).with_suffix(".jpg")

    def list_beside(self, slide_id: str) -> list[Path]:
        """Return the paths of the files of a slide beside features and record; they need not exist."""
        other = name_other_file(self.find_file(slide_id), self.settings.format)
        return [self.find_picture(slide_id), *([other] if other else [])]

    def _find_record_file(self, slide_id: str) -> Path:
        return self.path / RECORDS / f"{slide_id}.json"
