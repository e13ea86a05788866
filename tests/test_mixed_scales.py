"""What a pyramid level means in µm/px, and whether slides differ in it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from panda.app.run import note_level
from panda.audit.inspection import Inspection
from panda.audit.page import write_audit_page
from panda.audit.tables import AuditSummary, measure_levels
from panda.tasks.metadata import TrainedResolution
from panda.wsi.slide import ResolutionRequest

LEVEL_1 = ResolutionRequest(level=1)


@pytest.mark.parametrize(
    ("mpp", "said", "noted"),
    [
        ([2.0, 2.0], "Level 1 is 2 µm/px on the training slides.", False),
        ([1.94, 2.01, 2.0], "Level 1 is 1.94 to 2.01 µm/px on the training slides.", True),
        (
            [1.0, 2.0],
            "a cell is up to 2.00 times as large on one slide as on another. Give data.level=null data",
            True,
        ),
    ],
)
def test_note_level_states_range_and_warns_of_mixed_scales(
    panda_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mpp: list[float], said: str, noted: bool
) -> None:
    monkeypatch.setattr(logging.getLogger(note_level.__module__), "disabled", False)
    panda_log.set_level(logging.INFO, note_level.__module__)
    notes: list[str] = []
    note_level(TrainedResolution.from_slides(LEVEL_1, mpp), notes)
    (record,) = (record for record in panda_log.records if record.name == note_level.__module__)
    assert said in record.getMessage()
    assert record.levelno == (logging.WARNING if "Give" in said else logging.INFO)
    assert notes == [record.getMessage()] * noted


def test_note_level_resampled_or_unknown_scale_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    note_level(TrainedResolution.from_slides(ResolutionRequest(mpp=1.0), [1.0, 1.0]), notes)
    note_level(TrainedResolution.from_slides(LEVEL_1, []), notes)
    assert (notes, caplog.records) == ([], [])


def test_audit_of_two_scales_names_data_mpp(tmp_path: Path) -> None:
    half = [
        Inspection(f"s{number}", "radboud", downsamples=(1.0, 4.0), mpp=(mpp, mpp))
        for number, mpp in enumerate([0.25, 0.25, 0.5, 0.5])
    ]
    levels = measure_levels([*half, Inspection("unknown", "radboud", downsamples=(1.0, 4.0))])
    ranges = [(level.lowest_mpp, level.highest_mpp, level.is_mixed) for level in levels]
    assert ranges == [(0.25, 0.5, True), (1, 2, True)]
    assert levels[1].describe().startswith("Level 1 is 1 to 2 µm/px on 4 slides: ")
    none: dict[str, object] = {"providers": {}, "findings": {}, "groups": None, "crowded": ()}
    worst = {"error": 0, "warning": 0, "note": 0}
    summary = AuditSummary.model_validate({"schema": 1, "data": "x", "rows": 5, "slides": 5, "worst": worst, **none})
    summary.model_copy(update={"levels": tuple(levels)}).write(tmp_path)
    assert list(AuditSummary.read(tmp_path).levels) == levels
    text = write_audit_page(tmp_path).read_text()
    assert "Give data.level=null data.mpp=2, and all slides have one scale" in text
    assert "0: 0.25 to 0.5, 1: 1 to 2" in text.replace("0.250", "0.25").replace("0.500", "0.5").replace(".000", "")
