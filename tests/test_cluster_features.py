"""Features of slides that workers of dask encode: the same bytes as of one process, failures, refusals."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from panda.app.entry_point import SomeSlidesFailed
from panda.app.features import check, extract_features
from panda.app.slide_encoding import SlideEncoding
from panda.data.shard import Shard
from panda.errors import PandaError
from panda.inference.features import TileEncoder
from panda.tables import read_output_table
from tests.killer import KILLER, KillingEncoding
from tests.pyramids import write_pyramid
from tests.test_config_check import compose_config

OWN = ("slides=slides", "encoder=test_resnet", "encoder_weights=null", "tile_size=64", "mpp=0.5")
ENGINE = ("engine.device=cpu", "engine.batch_size=4")

Extract = Callable[..., dict[str, bytes]]


@pytest.fixture
def extract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Run the command over slides whose tiles do not fill batches, and return the files of features."""
    monkeypatch.chdir(tmp_path)
    for number, name in ((1, "a"), (0, "d"), (2, KILLER)):
        image = np.full((384, 384, 3), 244, np.uint8)
        image[60 : 200 + 40 * number, 60:320] = (215, 120, 180)
        image[90:190:9, 80:300] = (120, 60, 140)
        write_pyramid(tmp_path / "slides" / f"{name}.tiff", image, mpp=0.5)

    def call(out: str, *overrides: str) -> dict[str, bytes]:
        extract_features(compose_config(*OWN, *ENGINE, *overrides, f"run_dir={out}", entry_point="features"))
        return {path.name: path.read_bytes() for path in Path(out).glob("[!.]*.h5")}

    return call


def read_tables(out: str) -> list[dict[str, str]]:
    return [row | {"seconds": ""} for row in read_output_table(Path(out) / "features.csv")]


def test_features_do_not_depend_on_shards(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, run = list[int](), TileEncoder.run

    def record(encoder: TileEncoder, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return run(encoder, images)

    monkeypatch.setattr(TileEncoder, "run", record)
    whole = extract("whole")
    assert [row["tiles"] for row in read_tables("whole")] == ["12", "10", "16"]
    assert sizes == [4, 4, 4, 4, 4, 2, 4, 4, 4, 4], "no batch has tiles of two slides"
    assert [Shard(2, 2).holds(name) for name in ("a", "d", KILLER)] == [False, True, False]
    for number in (1, 2):
        shards = extract("shards", f"shard={number}/2")
    assert shards == whole
    assert read_tables("shards") == read_tables("whole")


@pytest.mark.slow
def test_features_workers_write_same_bytes_and_killer_fails(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract("whole")
    with monkeypatch.context() as patched:
        patched.setattr("panda.app.features.SlideEncoding", KillingEncoding)
        with pytest.raises(SomeSlidesFailed, match="1 of 3 slides failed"):
            extract("local", "cluster=local", "cluster.workers=2")
    (failure,) = read_output_table(Path("local/failures.csv"))
    assert failure["slide_id"] == KILLER
    assert "3 workers ended while they worked on it" in failure["message"]
    assert not [path.name for path in Path("local").iterdir() if path.name.startswith(".panda")]
    # The same command continues, here in one process, and needs no worker when nothing is left.
    for place in ((), ("cluster=address", "cluster.address=tcp://127.0.0.1:9")):
        assert extract("local", *place) == whole
    assert read_tables("local") == read_tables("whole")


def test_slide_encoding_refuses_what_differs_on_a_worker(extract: Extract) -> None:
    config = check(compose_config(*OWN, *ENGINE, "run_dir=out", entry_point="features"))
    encoding = SlideEncoding.from_config(config)
    sent = pickle.dumps(encoding)
    assert len(sent) < 20_000, "the weights are read there"
    facts = pickle.loads(sent).load().facts
    assert facts == encoding.load().facts
    assert facts != dataclasses.replace(facts, device="cuda")
    with pytest.raises(PandaError, match="encoder test_resnet has other weights or settings there"):
        dataclasses.replace(encoding, made_with="0" * 64).load()
    with pytest.raises(PandaError, match=r"none.tiff: there is no such slide there"):
        dataclasses.replace(encoding, sample=[Path("none.tiff")]).load()


def test_features_unreachable_scheduler_leaves_no_folder(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.app.cluster._CONNECT_S", 1)
    with pytest.raises(PandaError, match="no dask scheduler answers"):
        extract("out", "cluster=address", "cluster.address=tcp://127.0.0.1:9")
    assert not Path("out").exists()
