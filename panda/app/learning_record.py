"""The record of everything that a training learns from, by which a resumed run notices that it changed.

`learns_from.json` is beside `config.yaml` and is written once, when the run begins. It identifies files by name, size
and time of change, as the patch store does. So a whole data set takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter

from panda.app.dashboard import flatten
from panda.app.resume import SESSION_KEYS, is_resumable
from panda.data.manifest import SlideRecord
from panda.data.slide_entry import FileIdentity
from panda.data.slide_selection import LEFT_OUT, Selection
from panda.errors import CheckpointError
from panda.files import write_json
from panda.stored import Plain, read_model
from panda.wsi.label_maps import find_label_map, get_label_maps

FILE = "learns_from.json"
"""Name of the record in the folder of a run."""
_SHOWN = 5


class LearnedSlide(Plain, frozen=True):
    """A row of the table of slides.

    Attributes:
        split: Its split, or `left_out`; then only the group is known.
        slide: The file of a training or validation slide, or of its features, or None if it is missing.
        mask: The file of its label mask, or None if it is missing.
    """

    split: str
    group: str
    data_provider: str | None = None
    isup_grade: int | None = None
    slide: FileIdentity | None = None
    mask: FileIdentity | None = None


class LearningRecord(Plain, frozen=True):
    """Everything that a training learns from.

    Attributes:
        config: Dotted key → value as JSON, for all keys that a resumed run keeps.
        label_maps: Provider → meaning of its mask codes.
        slides: Slide id → its row, split and files.
        segmentation: Fingerprints of the segmentations that guide the tiles of a grading.
    """

    format: Literal[1] = 1
    config: dict[str, str]
    label_maps: dict[str, dict[str, list[int]]]
    slides: dict[str, LearnedSlide]
    segmentation: list[str]

    @classmethod
    def read_today(
        cls,
        cfg: DictConfig,
        selection: Selection,
        segmentation: Sequence[str],
        features: Mapping[str, Path] | None = None,
    ) -> LearningRecord:
        """Describe configuration, tables and files as they are now.

        `features` maps slide ids to the files that are learned from instead of slides and masks.
        """
        split = {row["slide_id"]: row["split"] for row in selection.list_rows()}
        slides = {
            record.slide_id: _describe_slide(record, split[record.slide_id], features) for record in selection.records
        }
        providers = sorted({slide.data_provider for slide in slides.values() if slide.data_provider})
        known = get_label_maps()  # slides of features without masks may have other providers
        return cls(
            config=_list_kept_keys(cfg),
            label_maps={provider: find_label_map(provider).codes() for provider in providers if provider in known},
            slides=slides,
            segmentation=list(segmentation),
        )

    def write(self, folder: Path) -> None:
        """Write the record into the folder of a run."""
        write_json(folder / FILE, self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def read(cls, folder: Path) -> LearningRecord:
        """Read the record of a run, or raise `CheckpointError`."""
        try:
            return read_model(folder / FILE, TypeAdapter(cls), "restore the file, or start a new run", CheckpointError)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder / FILE} does not exist, so nobody knows whether the data of the run changed: restore it, or "
                "start a new run"
            ) from error

    def find_changes(self, today: LearningRecord) -> list[str]:
        """Return each difference of today's record, with the old and the new value."""
        return [
            *(f"config.yaml: {change}" for change in _compare(self.config, today.config)),
            *(f"segmentation_checkpoint: {change}" for change in _compare_lists(self.segmentation, today.segmentation)),
            *(
                f"label map of {provider}: {change}"
                for provider in sorted(self.label_maps.keys() & today.label_maps.keys())
                for change in _compare(self.label_maps[provider], today.label_maps[provider])
            ),
            *(
                f"slide {slide_id}: {change}"
                for slide_id in sorted(self.slides.keys() | today.slides.keys())
                for change in _compare_slides(self.slides.get(slide_id), today.slides.get(slide_id))
            ),
        ]

    def check(self, today: LearningRecord, resume: Path) -> None:
        """Raise `CheckpointError` that names what changed since the run began."""
        if changes := self.find_changes(today):
            more = f"\n  … and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            listed = "".join(f"\n  {change}" for change in changes[:_SHOWN])
            raise CheckpointError(
                f"resume={resume}: what the run learns from has changed since it began:{listed}{more}\n"
                "Restore the old values and files (cp -p and rsync -t keep their times), or start a new run"
            )


def _describe_slide(record: SlideRecord, split: str, features: Mapping[str, Path] | None) -> LearnedSlide:
    if split == LEFT_OUT:
        return LearnedSlide(split=split, group=record.group)
    learned = split != "test"
    path: Path | None = record.image_path
    mask = record.mask_path
    if features is not None:
        path, mask = features.get(record.slide_id), None
    return LearnedSlide(
        split=split,
        group=record.group,
        data_provider=record.provider,
        isup_grade=record.isup_grade,
        slide=_identify(path) if learned and path else None,
        mask=_identify(mask) if learned and mask else None,
    )


def _identify(path: Path) -> FileIdentity | None:
    with suppress(OSError):
        return FileIdentity.read(path)
    return None


def _list_kept_keys(cfg: DictConfig) -> dict[str, str]:
    """Return dotted key → value as JSON, for the keys that a resumed run keeps."""
    grading = OmegaConf.select(cfg, "task.name") == "grading"
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        key: json.dumps(value)
        for key, value in flatten(plain).items()
        if key not in (*SESSION_KEYS, "run_dir") and not is_resumable(key, grading)
    }


def _compare(before: Mapping[str, Any], today: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(before.keys() | today.keys()):
        old, new = before.get(key, "absent"), today.get(key, "absent")
        if old != new:
            yield f"{key} was {old} and is {new}"


def _compare_lists(before: Sequence[str], today: Sequence[str]) -> Iterator[str]:
    if list(before) != list(today):
        old, new = (", ".join(name[:12] for name in names) or "none" for names in (before, today))
        yield f"its weights had the fingerprint {old} and have {new}"


def _compare_slides(before: LearnedSlide | None, today: LearnedSlide | None) -> Iterator[str]:
    if before is None or today is None:
        yield "is new in the table" if before is None else "is no longer in the table"
        return
    for key in LearnedSlide.model_fields:
        old, new = getattr(before, key), getattr(today, key)
        if old != new:
            absent = "missing" if key in ("slide", "mask") else "empty"
            old, new = (absent if value is None else value for value in (old, new))
            name = {"slide": "its file", "mask": "its mask"}.get(key, key)
            yield f"{name} was {old} and is {new}"
