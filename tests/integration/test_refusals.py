"""A refused command changes no byte, and no time of change, in the folder of a run or an inference."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from panda.files import hold_lock
from tests.checkpoints import grading_checkpoint
from tests.integration.entry_points import run_entry_point
from tests.integration.test_entry_points import TINY
from tests.panda_folder import make_folder

pytestmark = pytest.mark.slow

RUN = (
    *(o for o in TINY if not o.startswith(("data.draw", "trainer.max_epochs"))),
    "data=panda",
    "data.root=data",
    "data.test_fraction=0.2",
    "trainer.max_epochs=2",
    "+trainer.limit_train_batches=2",
    "+trainer.limit_val_batches=2",
    "logger=csv",
    "test_slides=false",
)
DONE = "runs/segmentation/done"
LAST = f"{DONE}/checkpoints/last.ckpt"
RECORD = f"{DONE}/learns_from.json"
JOB = "runs/segmentation/sweep-old/0"
RESUME = ("train", f"resume={LAST}")

State = dict[str, tuple[str | int, int]]
Change = Callable[[Path], AbstractContextManager[None]]


def snapshot(folder: Path) -> State:
    """Return content and time of change of all files and folders, hidden ones too."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path.relative_to(folder)): (identify_content(path), path.stat().st_mtime_ns) for path in paths}


def identify_content(path: Path) -> str | int:
    """Return the hash of a file; of a checkpoint, which is large, the time of change that no program can set."""
    if path.is_dir():
        return ""
    return path.stat().st_ctime_ns if path.suffix == ".ckpt" else hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with slides, a finished run, a job of a sweep and an inference."""
    home = tmp_path_factory.mktemp("home")
    make_folder(home / "data", 8)
    done = run_entry_point("train", home, *RUN, "name=done")
    assert done.returncode == 0, done.stderr[-3000:]
    slide = next((home / "data" / "train_images").iterdir())
    done = run_entry_point("infer", home, f"checkpoint={home / DONE}/checkpoints/best.ckpt", f"slides={slide}")
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(home / DONE, home / JOB)
    grading_checkpoint(home / "grader.ckpt")
    return home


@contextlib.contextmanager
def edit(home: Path, name: str, change: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """Change a file (None removes it), and restore it with its times afterwards, and those of its folder."""
    path = home / name
    kept, parent = home / "kept", path.parent.stat()
    shutil.copy2(path, kept)
    content = change(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    yield
    shutil.copy2(kept, path)
    os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


def edit_text(name: str, old: str, new: str) -> Change:
    def change(content: bytes) -> bytes:
        text = content.decode()
        assert old in text
        return text.replace(old, new, 1).encode()

    return lambda home: edit(home, name, change)


def edit_file(name: str, change: Callable[[bytes], bytes | None]) -> Change:
    return lambda home: edit(home, name, change)


def edit_learned(folder: str) -> Change:
    """Replace a slide or mask that the run learned from by a file of other bytes."""

    def change(home: Path) -> AbstractContextManager[None]:
        (row,) = [r for r in (home / DONE / "splits.csv").read_text().splitlines() if ",train," in r][:1]
        name = row.split(",")[0] + ("_mask" if "masks" in folder else "")
        return edit(home, f"data/{folder}/{name}.tiff", lambda content: content + b"\0")

    return change


def edit_row(column: int, value: str) -> Change:
    """Change a column of a slide that the run learned from."""

    def change(home: Path) -> AbstractContextManager[None]:
        (row,) = [r for r in (home / DONE / "splits.csv").read_text().splitlines() if ",train," in r][:1]
        slide_id = row.split(",")[0]

        def replace(content: bytes) -> bytes:
            rows = [line.split(",") for line in content.decode().splitlines()]
            changed = [[*r[:column], value, *r[column + 1 :]] if r[0] == slide_id else r for r in rows]
            return ("\n".join(map(",".join, changed)) + "\n").encode()

        return edit(home, "data/train.csv", replace)

    return change


def lock(home: Path) -> AbstractContextManager[None]:
    return hold_lock(home / DONE / "run", wait=False)


def replace_network(home: Path) -> AbstractContextManager[None]:
    """Put a checkpoint of a network with another layer in the place of the last one."""

    def change(_: bytes) -> bytes:
        content = torch.load(home / LAST, weights_only=True)
        content["state_dict"]["network.other"] = torch.zeros(1)
        torch.save(content, home / "other.ckpt")
        return (home / "other.ckpt").read_bytes()

    return edit(home, LAST, change)


def strip_training_state(home: Path) -> AbstractContextManager[None]:
    def change(_: bytes) -> bytes:
        content = torch.load(home / LAST, weights_only=True)
        del content["callbacks"]
        torch.save(content, home / "other.ckpt")
        return (home / "other.ckpt").read_bytes()

    return edit(home, LAST, change)


def edit_training_state(home: Path) -> AbstractContextManager[None]:
    def change(_: bytes) -> bytes:
        content = torch.load(home / LAST, weights_only=True)
        content["pytorch-lightning_version"] = "new"
        torch.save(content, home / "other.ckpt")
        return (home / "other.ckpt").read_bytes()

    return edit(home, LAST, change)


def edit_checkpoint(name: str, key: str, value: object) -> Change:
    """Change a value of the metadata of a checkpoint, by its dotted key."""

    def change(home: Path) -> AbstractContextManager[None]:
        def replace(_: bytes) -> bytes:
            content = torch.load(home / name, weights_only=True)
            *path, last = key.split(".")
            node = content["panda"]
            for part in path:
                node = node[part]
            assert last in node
            node[last] = value
            torch.save(content, home / "other.ckpt")
            return (home / "other.ckpt").read_bytes()

        return edit(home, name, replace)

    return change


def change_nothing(home: Path) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


GRADING = ("train", "task=grading", "data=panda", "data.root=data", "name=done", "logger=csv", "trainer=cpu")
INFER = ("infer", f"checkpoint={DONE}/checkpoints/best.ckpt", "slides=data/train_images", "output=out")
REFUSED: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "fewer_epochs": (change_nothing, (*RESUME, "trainer.max_epochs=1"), "the run has 2 epochs already; give 2"),
    "no_epochs": (change_nothing, (*RESUME, "trainer.max_epochs=0"), "trainer.max_epochs=0 must be at least 1"),
    "job_of_sweep": (
        change_nothing,
        ("train", f"resume={JOB}/checkpoints/last.ckpt", "trainer.max_epochs=1"),
        "the run has 2 epochs already",
    ),
    "replaced_mask": (edit_learned("train_label_masks"), RESUME, "its mask was"),
    "replaced_slide": (edit_learned("train_images"), RESUME, "its file was"),
    "other_grade": (edit_row(2, "5"), RESUME, "isup_grade was"),
    "other_provider": (edit_row(1, "binary"), RESUME, "data_provider was"),
    "unknown_provider": (edit_row(1, "nobody"), RESUME, "data_provider"),
    "no_table": (edit_file("data/train.csv", lambda _: None), RESUME, "data.root=data has no train.csv"),
    "edited_config": (
        edit_text(f"{DONE}/config.yaml", "lr: 0.001", "lr: 0.01"),
        RESUME,
        "config.yaml: optim.lr was 0.001 and is 0.01",
    ),
    "edited_task": (edit_text(f"{DONE}/config.yaml", "name: segmentation", "name: grading"), RESUME, "grading"),
    "damaged_config": (edit_text(f"{DONE}/config.yaml", "seed:", "[:"), RESUME, "config.yaml cannot be read"),
    "no_config": (edit_file(f"{DONE}/config.yaml", lambda _: None), RESUME, "config.yaml does not exist"),
    "no_record": (edit_file(f"{DONE}/learns_from.json", lambda _: None), RESUME, "learns_from.json does not exist"),
    "damaged_record": (edit_file(f"{DONE}/learns_from.json", lambda c: c[:99]), RESUME, "learns_from.json"),
    "record_of_other_format": (edit_text(RECORD, '"format": 1', '"format": 9'), RESUME, "format is 9"),
    "record_with_number": (edit_text(RECORD, '"split": "train"', '"split": 5'), RESUME, "split is 5"),
    "edited_checkpoint": (edit_checkpoint(LAST, "patch_size", "wide"), RESUME, "panda.patch_size is 'wide'"),
    "edited_threshold": (edit_checkpoint(LAST, "threshold.value", math.nan), RESUME, "panda.threshold.value is nan"),
    "guide_from_hub": (
        edit_checkpoint(f"{DONE}/checkpoints/best.ckpt", "network.encoder_name", "tu-hf-hub:timm/resnet18.a1_in1k"),
        (*GRADING[:4], "name=new", *GRADING[5:], f"segmentation_checkpoint={DONE}/checkpoints/best.ckpt"),
        "encoder_name=tu-hf-hub:timm/resnet18.a1_in1k: there is no such encoder",
    ),
    "infer_encoder_from_hub": (
        edit_checkpoint(f"{DONE}/checkpoints/best.ckpt", "network.encoder_name", "tu-hf-hub:timm/resnet18.a1_in1k"),
        INFER,
        "encoder_name=tu-hf-hub:timm/resnet18.a1_in1k: there is no such encoder",
    ),
    "infer_encoder_of_folder": (
        edit_checkpoint(f"{DONE}/checkpoints/best.ckpt", "network.encoder_name", "tu-local-dir:data"),
        INFER,
        "encoder_name=tu-local-dir:data: there is no such encoder",
    ),
    "infer_weights_from_hub": (
        edit_checkpoint(f"{DONE}/checkpoints/best.ckpt", "network.encoder_weights", "imagenet"),
        INFER,
        "encoder_weights is 'imagenet', but must be null",
    ),
    "infer_grader_from_hub": (
        edit_checkpoint("grader.ckpt", "network.encoder", "hf-hub:timm/resnet18.a1_in1k"),
        (*INFER, "grading_checkpoint=grader.ckpt"),
        "encoder=hf-hub:timm/resnet18.a1_in1k: timm has no such model",
    ),
    "infer_grader_of_other_source": (
        edit_checkpoint("grader.ckpt", "network.encoder", "resnet18.hf-hub:timm/resnet18"),
        (*INFER, "grading_checkpoint=grader.ckpt"),
        "encoder=resnet18.hf-hub:timm/resnet18: timm cannot build it",
    ),
    "other_task": (change_nothing, (*RESUME, "task=grading"), "a resumed run keeps its choices"),
    "other_data": (change_nothing, (*RESUME, "data.seed=1"), "a resumed run keeps its choices"),
    "no_checkpoint": (change_nothing, ("train", f"resume={DONE}/checkpoints/no.ckpt"), "no.ckpt does not exist"),
    "best_checkpoint": (
        change_nothing,
        ("train", f"resume={DONE}/checkpoints/best.ckpt"),
        f"a run continues from its last.ckpt and overwrites it; give resume={DONE}/checkpoints/last.ckpt",
    ),
    "no_best": (edit_file(f"{DONE}/checkpoints/best.ckpt", lambda _: None), RESUME, "best.ckpt does not exist"),
    "damaged_best": (edit_file(f"{DONE}/checkpoints/best.ckpt", lambda c: c[:999]), RESUME, "best.ckpt is not a"),
    "cut_checkpoint": (edit_file(LAST, lambda c: c[: len(c) // 2]), RESUME, "last.ckpt is not a checkpoint"),
    "empty_checkpoint": (edit_file(LAST, lambda _: b""), RESUME, "last.ckpt is not a checkpoint"),
    "other_network": (replace_network, RESUME, "is of another network than config.yaml"),
    "edited_state": (edit_training_state, RESUME, "the training state was edited"),
    "only_weights": (strip_training_state, RESUME, "has no training state of this version"),
    "unknown_key": (change_nothing, (*RESUME, "nonsense=1"), "nonsense"),
    "unknown_group": (change_nothing, (*RESUME, "model=nonsense"), "nonsense"),
    "devices": (change_nothing, (*RESUME, "engine.device=nonsense"), "engine.device"),
    "locked": (lock, RESUME, "another process works in"),
    "existing_run": (change_nothing, ("train", *RUN, "name=done"), "holds a run already"),
    "existing_run_unknown_key": (change_nothing, ("train", *RUN, "name=done", "nonsense=1"), "nonsense"),
    "existing_run_wrong_value": (change_nothing, ("train", *RUN, "name=done", "seed=-1"), "seed=-1"),
    "wrong_segmentation": (
        change_nothing,
        (*GRADING, f"segmentation_checkpoint={DONE}/metrics.csv"),
        "is not a checkpoint",
    ),
    "infer_into_run": (
        change_nothing,
        ("infer", f"checkpoint={DONE}/checkpoints/best.ckpt", "slides=data/train_images", f"output={DONE}"),
        f"output={DONE} is the folder of a training run",
    ),
    "infer_wrong_checkpoint": (
        change_nothing,
        ("infer", f"checkpoint={DONE}/metrics.csv", "slides=data/train_images", "output=out"),
        "is not a checkpoint",
    ),
    "infer_no_slides": (
        change_nothing,
        ("infer", f"checkpoint={DONE}/checkpoints/best.ckpt", "slides=nowhere", "output=out"),
        "slides=nowhere",
    ),
    "infer_unknown_key": (
        change_nothing,
        ("infer", f"checkpoint={DONE}/checkpoints/best.ckpt", "slides=data/train_images", "output=out", "nonsense=1"),
        "nonsense",
    ),
    "features_into_run": (
        change_nothing,
        ("features", "encoder=test_resnet", "encoder_weights=null", "slides=data/train_images", f"output={DONE}"),
        f"output={DONE} is the folder of a training run",
    ),
    "features_without_weights": (
        change_nothing,
        ("features", "encoder=virchow2", "slides=data/train_images", "output=out"),
        "encoder_weights=cached: the local cache of the hub",
    ),
    "audit_into_run": (
        change_nothing,
        ("audit", "data=panda", "data.root=data", f"output={DONE}"),
        f"output={DONE} is the folder of a training run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_command_changes_nothing(home: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a refused command goes to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    change, (entry_point, *overrides), reason = REFUSED[case]
    with change(home):
        before = {name: snapshot(home / name) for name in ("runs", "out")}
        done = run_entry_point(entry_point, home, *overrides)
        after = {name: snapshot(home / name) for name in ("runs", "out")}
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert reason in done.stderr
    for name, state in before.items():
        assert after[name] == state, {
            key for key in state.keys() | after[name].keys() if after[name].get(key) != state.get(key)
        }


def test_finished_run_resumes_after_refusals(home: Path) -> None:
    done = run_entry_point("train", home, f"resume={LAST}", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(home / LAST, weights_only=True)["epoch"] == 2
