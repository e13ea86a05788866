"""Jobs on a real SLURM, started by the scripts of docs/cluster.md, give what one process gives."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from omegaconf import OmegaConf

from tests.checkpoints import segmentation_checkpoint
from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.integration.test_entry_points import TINY
from tests.panda_folder import make_folder
from tests.slurm import Slurm, find_processes

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SLIDES = 4
Found = TypeVar("Found")
DATED = {"inference.json", "report.html", "slide.html"}
EPOCHS = 4
MAPPING = "engine.device=cpu engine.precision=fp32 engine.compile=never engine.post_workers=0 threshold=0.3"


def read_blocks(language: str) -> list[str]:
    """Return the blocks of docs/cluster.md in a language."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def write_script(folder: Path, name: str, **changes: str) -> Path:
    """Write a script of the page into a folder, with some of its words changed for small slides on a small machine."""
    (text,) = [block for block in read_blocks("sh") if f"# {name}:" in block]
    for old, new in changes.items():
        assert old in text, f"{name} of docs/cluster.md has no {old!r} any more"
        text = text.replace(old, new)
    script = folder / name
    script.write_text(text)
    return script


def hash_files(folder: Path) -> dict[str, str]:
    """Hash the results in an output, those with dates excepted."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in DATED
        and path.suffix != ".log"
        and not str(path.relative_to(folder)).startswith(".")
    }


def read_outputs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted((folder / "logs").rglob("*.txt")))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like a checkout, with slides, a checkpoint, and `alone`: what one process made of them."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("train.py", "infer.py", "conf"):
        (folder / name).symlink_to(REPOSITORY / name)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    (folder / "logs").mkdir()
    make_folder(folder, SLIDES)
    (folder / "train_images").rename(folder / "slides")
    segmentation_checkpoint(folder / "best.ckpt", patch_size=128, overlap=0.25)
    given = ("checkpoint=best.ckpt", "slides='slides/*.tiff'", "output=alone")
    done = run_entry_point("infer", folder, *given, *MAPPING.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(table(folder / "alone" / "quantification.csv")) == SLIDES
    return folder


def test_array_of_shards_gives_bytes_of_one_process(slurm: Slurm, workplace: Path) -> None:
    small = {"--array=0-63": "--array=0-2", "infer.py": f"infer.py {MAPPING}", "output=out": "output=array"}
    slurm.run("sbatch", write_script(workplace, "array.sh", **small), cwd=workplace)
    slurm.wait_for_jobs()
    assert hash_files(workplace / "array") == hash_files(workplace / "alone"), read_outputs(workplace)


def test_indexed_pods_give_bytes_of_one_process(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (manifest,) = read_blocks("yaml")
    (container,) = OmegaConf.create(manifest).spec.template.spec.containers
    program, script, *overrides = container["command"]
    assert (program, script) == ("python", "infer.py")
    changes = {"shard=auto/64": "shard=auto/2", "output=out": "output=pods"}
    given = [changes.get(override, override) for override in overrides]
    for index in range(2):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        done = run_entry_point("infer", workplace, *given, *MAPPING.split())
        assert done.returncode == 0, done.stderr[-3000:]
    assert hash_files(workplace / "pods") == hash_files(workplace / "alone")


def test_box_gives_bytes_of_one_process(workplace: Path) -> None:
    """The shell says which commands it would run, and they run here, without starts of their own."""
    script = write_script(workplace, "box.sh", **{"output=out": "output=box", "collect=out": "collect=box"})
    say = {"BASH_FUNC_python%%": '() { echo "${CUDA_VISIBLE_DEVICES-none} $*" >> said.txt; }'}
    subprocess.run(["bash", script], cwd=workplace, env=os.environ | say, check=True)
    *shards, collecting = [line.split() for line in (workplace / "said.txt").read_text().splitlines()]
    assert sorted(words[:3] for words in shards) == [["0", "infer.py", "shard=1/2"], ["1", "infer.py", "shard=2/2"]]
    assert collecting == ["none", "infer.py", "collect=box"]
    for words in shards:
        done = run_entry_point("infer", workplace, *words[2:], *MAPPING.split())
        assert done.returncode == 0, done.stderr[-3000:]
    (workplace / "box" / "quantification.csv").unlink()
    assert run_entry_point("infer", workplace, *collecting[2:]).returncode == 0
    assert hash_files(workplace / "box") == hash_files(workplace / "alone")


def test_killed_worker_changes_no_byte(slurm: Slurm, workplace: Path) -> None:
    mapping = MAPPING.replace("engine.post_workers=0 ", "")  # the workers write the files
    changes = {"cluster.workers=8": "cluster.workers=2", "infer.py": f"infer.py {mapping}", "=out": "=workers"}
    script = write_script(workplace, "workers.sh", **changes)
    with subprocess.Popen(["bash", script], cwd=workplace, env=slurm.environment) as command:
        try:
            wait_for(lambda: any((workplace / "workers").glob("*/canvas.zarr")) or command.poll() is not None, slurm)
            os.kill(find_worker(slurm), signal.SIGKILL)
            assert command.wait(150) == 0, slurm.read_logs()
        finally:
            command.kill()
    assert slurm.run("squeue", "--noheader") == ""
    assert hash_files(workplace / "workers") == hash_files(workplace / "alone")


def find_worker(slurm: Slurm) -> int:
    """Return a process of a job that works on slides; it is a child of the one that the job started."""
    for process in find_processes(slurm.environment["SLURM_CONF"]):
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        if b"multiprocessing.spawn" in command and b"spawn_main" in command:
            return process
    raise AssertionError("no worker runs")


def test_training_on_two_nodes_goes_on_after_signal(slurm: Slurm, workplace: Path) -> None:
    tiny = " ".join(f"'{override}'" for override in TINY if not override.startswith("trainer"))
    changes = {
        "--ntasks-per-node=4 --gpus-per-node=4": "--ntasks-per-node=1",
        "trainer.devices=4": f"trainer.devices=1 trainer.accelerator=cpu trainer.max_epochs={EPOCHS} logger=csv",
        "data=panda data.root=/data/panda": tiny,
    }
    job = slurm.run("sbatch", "--parsable", write_script(workplace, "ddp.sh", **changes), cwd=workplace).strip()
    run = workplace / "runs" / "segmentation" / "large"
    wait_for((run / "checkpoints" / "last.ckpt").exists, slurm)
    slurm.run("scancel", "--signal=TERM", job)
    slurm.wait_for_jobs(240)
    log = (workplace / "logs" / f"{job}.txt").read_text() + slurm.read_logs()
    assert (run / "summary.json").is_file(), log
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["devices"], summary["epochs"]) == (2, EPOCHS)
    epochs = [row["epoch"] for row in table(run / "metrics.csv") if row["val/dice"]]
    assert epochs == [str(epoch) for epoch in range(EPOCHS)]
    assert (run / "run.log").read_text().count(" run: runs/segmentation/large") == 2, log


def test_sweep_goes_on_after_a_requeue_of_a_job(slurm: Slurm, workplace: Path) -> None:
    tiny = " ".join(f"'{override}'" for override in (*TINY, f"trainer.max_epochs={EPOCHS}", "logger=csv"))
    changes = {"data=panda data.root=/data/panda": tiny, "data.patch_size=256,512": "data.patch_size=64,96"}
    script = write_script(workplace, "sweep.sh", **changes)
    sweep = workplace / "runs" / "segmentation" / "sweep-first"
    with subprocess.Popen(["bash", script], cwd=workplace, env=slurm.environment) as launcher:
        try:
            job, number = wait_for_training(slurm, sweep)
            slurm.run("scontrol", "requeue", job)
            assert launcher.wait(240) == 0, slurm.read_logs()
        finally:
            launcher.kill()
    rows = table(sweep / "sweep.csv")
    assert [row["state"] for row in rows] == ["done"] * 4
    assert [row["trained_by"] for row in rows].count("") == 2  # each pair shares a training, of its first or second job
    epochs = [row["epoch"] for row in table(sweep / number / "metrics.csv") if row["val/dice"]]
    assert epochs == [str(epoch) for epoch in range(EPOCHS)]
    assert (sweep / number / "run.log").read_text().count(f" run: {sweep / number}") == 2


def wait_for_training(slurm: Slurm, sweep: Path) -> tuple[str, str]:
    """Return the SLURM id and the number of a job of a sweep that has trained an epoch."""

    def find() -> tuple[str, str] | None:
        for job in slurm.run("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split():
            number = job.rpartition("_")[2]
            if (sweep / number / "checkpoints" / "last.ckpt").exists():
                return job, number
        return None

    return wait_for(find, slurm)


def wait_for(find: Callable[[], Found | None], slurm: Slurm, timeout: float = 180) -> Found:
    """Return what a function finds as soon as it finds something."""
    end = time.monotonic() + timeout
    while not (found := find()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing found within {timeout:.0f} s; {slurm.run('squeue')}{slurm.read_logs()}")
        time.sleep(0.1)
    return found
