"""Files that a hand edited: each key of each file is changed, and every reader gives the same result or names it.

An edit that a reader cannot know for one, such as another name of a device, may be believed if it is a valid value.
"""

from __future__ import annotations

import copy
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from pydantic import TypeAdapter

from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.app.training_reuse import Training
from panda.audit.tables import AuditSummary
from panda.data.slide_entry import SlideEntry
from panda.errors import PandaError
from panda.inference.autotune import TunedMode
from panda.inference.canvas import Canvas
from panda.inference.predictor import restore_network
from panda.inference.slide_result import SlideResult
from panda.models.segmentation import Segmenter
from panda.report.inference_summary import InferenceSummary
from panda.report.run_summary import read_summary
from panda.report.slide_page import write_slide_page
from panda.stored import Plain, read_model
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from tests.checkpoints import segmentation_checkpoint
from tests.test_infer import CONF, draw
from tests.test_summary_schema import summary

WRONG: tuple[Any, ...] = ("text", "", None, True, -1, 1e6, 10**30, math.nan, math.inf, [], {}, [None], {"extra": 1})
MOST_S = 2.0
Key = tuple[str | int, ...]
Reader = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a reader goes to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of an inference on one drawn slide."""
    folder = tmp_path_factory.mktemp("edited")
    slide, checkpoint = draw(folder / "a.tiff"), segmentation_checkpoint(folder / "best.ckpt")
    out = folder / "out"
    register_resolvers()
    given = [f"checkpoint={checkpoint}", f"output={out}", f"run_dir={out}", f"slides={slide}", "engine.device=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("infer", overrides=[*given, "threshold=0.4"])
    infer(cfg)
    return out


def list_keys(content: Any, key: Key = ()) -> Iterator[Key]:
    """Yield the key of every value; of a long list only of the first two."""
    if key:
        yield key
    entries = (
        content.items() if isinstance(content, dict) else enumerate(content[:2] if isinstance(content, list) else ())
    )
    for name, value in entries:
        yield from list_keys(value, (*key, name))


def list_edits(content: Any) -> Iterator[tuple[Key, str, Any]]:
    """Yield every edit of JSON-like data: the key, what was done, and the edited content."""
    for key in list_keys(content):
        for change in ("missing", "extra", *WRONG):
            edited = copy.deepcopy(content)
            parent = edited
            for part in key[:-1]:
                parent = parent[part]
            if isinstance(change, str) and change == "missing":
                del parent[key[-1]]
            elif isinstance(change, str) and change == "extra":
                if not isinstance(parent, dict):
                    continue
                parent["an_extra_key"] = 1
            else:
                parent[key[-1]] = change
            yield key, repr(change), edited


def catch(read: Reader, path: Path) -> tuple[str | None, Any]:
    """Return the message of a `PandaError` and nothing, or no message and what was read."""
    try:
        return None, read(path)
    except PandaError as error:
        return str(error), None


def check_edits(path: Path, read: Reader, free: tuple[str, ...] = ()) -> int:
    """Read a file after each edit: the same result, or an error that names the file and the key.

    `free` are keys whose other valid values are believed, such as names, and objects of any keys.
    """
    whole = path.read_text(encoding="utf-8")
    content, right, refused = json.loads(whole), read(path), 0
    try:
        for key, change, edited in list_edits(content):
            path.write_text(json.dumps(edited), encoding="utf-8")
            start = time.process_time()
            where = f"{'.'.join(map(str, key))} {change}"
            message, found = catch(read, path)
            if message is None:
                assert found == right or any(part in free for part in key), f"{where} is believed"
            else:
                refused += 1
                assert path.name in message, where
                named = {str(part) for part in key} | {"an_extra_key", "quantify."}
                assert any(part in message for part in named), f"{where}: {message}"
            assert time.process_time() - start < MOST_S, where
    finally:
        path.write_text(whole, encoding="utf-8")
    return refused


def write(path: Path, model: Plain) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(model.model_dump_json(by_alias=True), encoding="utf-8")
    return path


def test_edited_quantification_is_refused_or_same(output: Path) -> None:
    free: tuple[str, ...] = (
        "slide_id",
        "paths",
        "mm2_note",
        "mpp_note",
        "grade_note",
        "file",
        "frame",
        "regions",
        "nearby",
        "mpp",
        "bounds",
    )
    free += (
        "checkpoint",
        "grading_checkpoint",
        "view_downsample",
        "tissue_how",
        "downsample",
        "in_sample",
        "mpp_source",
    )
    free += (
        "against_label",
        "tissue_px",
        "unscored_tissue_px",
        "tumor_mm2",
        "tissue_mm2",
        "settings",
        "px_at_threshold",
        "canvas",
        "label_maps",
    )
    refused = check_edits(output / "a" / "quantification.json", lambda path: SlideResult.read(path.parent), free)
    assert refused > 300


def test_edited_inference_json_is_refused_or_same(output: Path) -> None:
    free: tuple[str, ...] = (
        "checkpoint",
        "grading_checkpoint",
        "provider",
        "engine_choice",
        "labels",
        "groups",
        "notes",
        "device",
        "last_run",
    )
    free += ("threshold", "quantify", "resolution", "compiled", "mpp_override", "allow_unknown_mpp")
    free += ("overrides", "commit", "network", "patch_size")
    assert check_edits(output / "inference.json", lambda path: InferenceSummary.read(path.parent), free) > 100


def test_edited_canvas_is_refused_or_same(output: Path) -> None:
    path = output / "a" / "canvas.zarr" / "zarr.json"

    def read(path: Path) -> Any:
        canvas = Canvas.open(path.parent)
        canvas.check()
        return canvas.fingerprint, canvas.resolution, canvas.patch_size

    assert check_edits(path, read, ("fingerprint", "resolution", "patch_size")) > 100


@pytest.mark.slow
def test_edited_regions_do_not_break_the_page(output: Path) -> None:
    path = output / "a" / "regions.geojson"
    whole, content = path.read_text(), json.loads(path.read_text())
    try:
        for key, change, edited in list_edits(content):
            if "properties" not in key:
                path.write_text(json.dumps(edited))
                assert write_slide_page(path.parent).is_file(), (key, change)
        path.write_text(whole.replace("[[[", '[[["far",', 1))
        text = write_slide_page(path.parent).read_text()
        assert "regions.geojson could not be read" in text
    finally:
        path.write_text(whole)


def test_edited_summary_is_refused_or_same(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    content = summary()
    content["val"] |= {"by_provider": {}, "by_grade": {}}
    content.pop("test")
    path.write_text(json.dumps(content))

    def read(path: Path) -> Any:
        found, fault = read_summary(path.parent)
        if fault:
            raise PandaError(fault)
        return found

    # Figures are believed within their bounds.
    free: tuple[str, ...] = (
        "val",
        "name",
        "device",
        "devices",
        "seed",
        "epochs",
        "seconds",
        "bootstrap",
        "trained_by",
        "notes",
        "data",
    )
    free += ("threshold_choice", "calibration", "threshold")
    assert check_edits(path, read, free) > 300


@pytest.mark.parametrize("kind", ["training", "engine", "audit", "slide"])
def test_edited_small_files_are_refused_or_same(tmp_path: Path, kind: str) -> None:
    size = {"name": "a.tiff", "bytes": 9, "mtime_ns": 5}
    models: dict[str, tuple[Plain, tuple[str, ...]]] = {
        "training": (
            Training(fingerprint="0" * 64, epochs=2, decided={"tta": "none"}),
            ("epochs", "decided", "trained_by"),
        ),
        "engine": (TunedMode(precision="fp32", compiled=False, moved=0.1, why="tried"), ("compiled", "moved", "why")),
        "audit": (
            AuditSummary.model_validate(
                {"schema": 1, "data": "d", "rows": 2, "slides": 2, "providers": {"radboud": 2}, "worst": {"note": 1},
                 "findings": {"blur": {"severity": "note", "slides": 1, "by_provider": {"radboud": 1}}},
                 "groups": None, "crowded": ()}
            ),
            ("data", "rows", "slides", "providers", "worst", "findings", "crowded"),
        ),
        "slide": (
            SlideEntry.model_validate(
                {"slide_id": "a", "provider": "radboud", "isup_grade": 3, "slide": size, "mask": size,
                 "codes": {"cancer": [3]}, "fingerprint": "0" * 64, "tissue": {"how": "strict", "fraction": 0.5},
                 "resolution": {"downsample": 4.0, "level": 1, "resampled": False, "mpp": (2.0, 2.0), "mpp_note": ""},
                 "patches": [{"x": 0, "y": 0, "tissue_fraction": 1.0, "tumor_fraction": 0.0,
                              "class_fractions": [0.0]}]}
            ),
            ("slide_id", "provider", "isup_grade", "slide", "mask", "codes", "tissue", "resolution", "patches"),
        ),
    }  # fmt: skip
    model, free = models[kind]
    adapter = TypeAdapter(type(model))
    assert check_edits(write(tmp_path / f"{kind}.json", model), lambda path: read_model(path, adapter, "again"), free)


@pytest.mark.slow
def test_edited_checkpoint_is_refused_or_same(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    whole = torch.load(path, weights_only=True)
    free = {
        "threshold",
        "label_maps",
        "train_slides",
        "val_slides",
        "resolution",
        "overlap",
        "mean",
        "std",
        "classes",
        "ignore_background",
    }

    weights = read_checkpoint(path, SegmentationMetadata).weights

    def read(path: Path) -> Any:
        checkpoint = replace(read_checkpoint(path, SegmentationMetadata), weights=weights)
        built = restore_network(Segmenter, checkpoint).options if key[0] == "network" else None
        return built, checkpoint.metadata.model_copy(update={"network": {}})

    key: Key = ("network",)
    right = read(path)
    for key, change, edited in list_edits(whole["panda"]):
        torch.save({"state_dict": {}, "panda": edited}, path)
        where = f"{'.'.join(map(str, key))} {change}"
        message, found = catch(read, path)
        if message is None:
            assert found[0] in (None, right[0]) or free & set(map(str, key)), f"{where} is believed"
            assert found[1] == right[1] or free & set(map(str, key)), f"{where} is believed"
        else:
            assert str(path) in message, where


def test_edited_weights_of_other_shape_are_named(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    name = next(name for name, value in content["state_dict"].items() if value.ndim == 4)
    for value in (torch.zeros(1), torch.zeros(1).expand(10**6, 10**6), None):
        changed = {key: old for key, old in content["state_dict"].items() if key != name}
        if value is not None:
            changed[name] = value
        torch.save(content | {"state_dict": changed}, path)
        with pytest.raises(PandaError, match=rf"a\.ckpt: .*{name}"):
            restore_network(Segmenter, read_checkpoint(path, SegmentationMetadata))
