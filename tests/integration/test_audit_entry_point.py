"""The audit as it is typed: `python audit.py …`."""

from __future__ import annotations

import logging
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from panda.app.cluster_map import DeadlySlideError, SlideCluster
from panda.app.slide_inspection import inspect_on_cluster
from panda.audit.audit_run import AuditRun
from panda.audit.dataset import Audit
from panda.data.slide_rows import SlideRow
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from tests.integration.entry_points import REPOSITORY, table
from tests.light_inspection import LightInspection


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two slides in `data/`, after resetting the exit status."""
    draw_dataset(tmp_path / "data", SyntheticSpec(slides=2, width=1024, height=768), progress=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(logging.getLogger("panda"), "handlers", [])
    return tmp_path


def enter(monkeypatch: pytest.MonkeyPatch, *typed: str) -> int:
    """Run the command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["audit", *typed])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / "audit.py"), run_name="__main__")
    assert isinstance(left.value.code, int)
    return left.value.code


def test_audit_prints_findings_and_remedies(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = table(home / "data" / "train.csv")[1]
    (home / "data" / "train_label_masks" / f"{spoilt['image_id']}_mask.tiff").unlink()
    assert enter(monkeypatch, "data=panda", "data.root=data", "output=out/a b", "audit.workers=1") == 0
    err = capsys.readouterr().err
    assert "2 slides: 1 with findings (0 at worst with an error, 1 at worst with a warning" in err
    assert "missing_mask" in err
    assert f"{spoilt['data_provider']} 1" in err
    assert "report: out/a b/report.html" in err
    assert (
        "next: python train.py data=panda data.root=data "
        "'data.groups=\"out/a b/groups.csv\"' data.exclude=[missing_mask]" in err
    )
    left = {path.name for path in (home / "out/a b").iterdir()}
    assert left >= {"audit.csv", "findings.csv", "groups.csv", "pairs.csv", "summary.json", "report.html", "audit.log"}
    assert [row["finding"] for row in table(home / "out/a b/findings.csv")] == ["missing_mask"]
    assert "data.exclude=[missing_mask]" in (home / "out/a b/report.html").read_text()


def test_audit_script_reads_table_only(home: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "audit.py"), "data=panda", "data.root=data", "audit.slides=false"]
    table_file = home / "data" / "train.csv"
    table_file.write_text(table_file.read_text() + table_file.read_text().splitlines()[1] + "\n")
    done = subprocess.run(
        command, cwd=home, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "correct the table of slides first, training refuses it as it is: duplicate_row" in done.stderr
    assert "there is no groups.csv" in done.stderr
    assert not (home / "audit" / "groups.csv").exists()
    assert [row["finding"] for row in table(home / "audit" / "findings.csv")] == ["duplicate_row"]


def test_audit_all_faults_at_once_and_no_output(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("data=panda", "data.root=nowhere", "data.level=1", "data.mpp_override=99", "data.reader=magic",
             "audit.workers=0", "audit.deep=maybe")  # fmt: skip
    assert enter(monkeypatch, *typed) == 1
    err = capsys.readouterr().err
    for said in ("data.level=1 is not used with audit.py: remove it", "data.reader=magic", "audit.deep=maybe"):
        assert said in err
    assert "Traceback" not in err
    assert not (home / "audit").exists()
    assert enter(monkeypatch, *typed[:2], typed[3], "audit.workers=0", "audit.slides=false", "audit.deep=true") == 1
    err = capsys.readouterr().err
    for said in ("4 faults", "data.root=nowhere has no train.csv", "data.mpp_override=99", "audit.workers=0",
                 "audit.deep=true needs"):  # fmt: skip
        assert said in err
    assert enter(monkeypatch, "data=panda") == 1
    assert "data.root is not given: write data.root=…" in capsys.readouterr().err
    assert enter(monkeypatch, "data=panda", "data.root=data", "audit.wokers=3") == 1
    assert "did you mean workers?" in capsys.readouterr().err
    assert enter(monkeypatch, "~data") == 1
    assert "data is not given" in capsys.readouterr().err
    assert not (home / "audit").exists()


def test_audit_embedded_slides_have_no_finding(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("data.draw.slides=2", "data.draw.width=1024", "data.draw.height=768")
    assert enter(monkeypatch, *small, "audit.workers=1") == 0
    assert table(home / "audit" / "findings.csv") == []
    assert "near-duplicates: none" in capsys.readouterr().err


def _files(out: Path) -> dict[str, bytes]:
    """Read what an audit leaves, except its logs and locks."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".log" and not path.name.startswith(".")
    }


def test_audit_parts_write_same_bytes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("data=panda", f"data.root={home / 'data'}", "output=out")
    parts: dict[str, list[tuple[str, ...]]] = {
        "whole": [("audit.workers=1",)],
        "shards": [("audit.workers=1", f"shard={number}/2") for number in (1, 2)],
        "workers": [("cluster=local", "cluster.workers=1")],
    }
    monkeypatch.setattr("panda.app.slide_inspection.SlideInspection", LightInspection)
    for name, commands in parts.items():
        (home / name).mkdir()
        monkeypatch.chdir(home / name)
        for command in commands:
            assert not Path("out/audit.csv").exists()
            assert enter(monkeypatch, *typed, *command) == 0, capsys.readouterr().err
    whole = _files(home / "whole" / "out")
    assert {"audit.csv", "findings.csv", "groups.csv", "report.html"} <= set(whole)
    assert _files(home / "shards" / "out") == whole
    assert _files(home / "workers" / "out") == whole
    err = capsys.readouterr().err
    assert err.count("shard 1/2 is done; the last one writes the tables, or python audit.py collect=out") == 1
    assert err.count("report: out/report.html") == 3
    monkeypatch.chdir(home / "shards")
    for command in parts["shards"]:  # the array is submitted again
        assert enter(monkeypatch, *typed, *command) == 0
    err = capsys.readouterr().err
    assert err.count("tables and page have all slides already") == 2
    assert "report:" not in err
    for name in ("audit.csv", "groups.csv", "report.html"):
        Path("out", name).unlink()
    assert enter(monkeypatch, "collect=out") == 0
    assert _files(home / "shards" / "out") == whole
    assert len(list(Path("out").glob("audit-*-of-2.log"))) == 2
    monkeypatch.delattr("panda.app.cluster.LocalCluster.connect")  # no worker starts for slides that are inspected
    assert enter(monkeypatch, *typed, "cluster=local") == 0
    assert _files(home / "shards" / "out") == whole


def test_audit_parts_that_cannot_be_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("data=panda", "data.root=data")
    AuditRun(data="data").write(home / "begun")
    shutil.copytree(home / "data", home / "other")
    for given, said in (
        ((*typed, "shard=1/2", "cluster=local"), "shard=1/2 and cluster=…: a cluster divides the slides itself"),
        ((*typed, "shard=3/2"), "shard=3/2: K must be 1 to 2"),
        ((*typed, "shard=1/2", "audit.slides=false"), "shard=1/2 needs audit.slides=true"),
        ((*typed, "cluster=local", "audit.slides=false"), "cluster=… needs audit.slides=true"),
        (
            (*typed, "cluster=local", "audit.workers=2", "cluster.gpus=1"),
            "audit.workers=2, cluster.gpus=1 are not used",
        ),
        ((*typed, "shard=1/2", "output=''"), "output='' must be text that is not empty"),
        ((*typed[:1], "data.root=other", "shard=1/2", "output=begun"), "begun holds the audit of data, and that"),
        ((*typed, "audit.slides=false", "output=begun"), "begun has an audit of the slides"),
        (("-m", *typed, "shard=1/2,2/2"), "each job of a multirun has an output of its own"),
        (("collect=audit",), "collect=audit has no records of slides (audit.json)"),
        (("collect=begun", "data=panda"), "data=panda is not used with collect=begun, which opens no slides"),
        (("collect=begun",), "begun: 2 of 2 slides are not inspected yet"),
    ):
        assert enter(monkeypatch, *given) == 1
        assert said in capsys.readouterr().err
        assert [path.name for path in (home / "begun").iterdir()] == ["audit.json"]
        assert not (home / "audit" / "audit.json").exists()


def test_audit_slide_that_kills_workers_is_a_finding(home: Path) -> None:
    audit, deadly = Audit(AuditRun(data=str(home / "data")), home / "out"), DeadlySlideError("3 workers ended")
    rows = audit.slides

    class Workers:
        def map(self, rows: Sequence[SlideRow]) -> Iterator[tuple[SlideRow, Any]]:
            yield from zip(rows, (deadly, OSError(28, "No space left on device")), strict=True)

    inspected = inspect_on_cluster(cast(SlideCluster[str], Workers()), rows)
    assert next(inspected) == (rows[0], None)
    with pytest.raises(OSError, match="No space left"):
        next(inspected)


def test_audit_does_not_import_torch() -> None:
    modules = ("audit.dataset", "audit.page", "app.audit", "app.audit_collection", "app.slide_inspection")
    names = ", ".join(f"panda.{name}" for name in (*modules, "app.cluster_map", "app.cluster_worker"))
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
