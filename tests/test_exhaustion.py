"""Memory that ran out ends a run with one message, and is never taken for the fault of a slide."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cv2
import pytest
import torch

from panda.app.build import Faults
from panda.data.extraction import extract_store
from panda.data.settings import PatchSettings
from panda.data.stain_estimates import estimate_stains
from panda.data.store import StoreResult
from panda.errors import ConfigError, ExhaustedError, SlideError, find_exhaustion
from panda.models.segmentation import Segmenter
from panda.report.job_end import JobEnd
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.tables import read_output_table
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.integration.entry_points import REPOSITORY, Done, run_entry_point
from tests.panda_folder import make_folder

_BUS_ERROR = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
_NO_SPACE = "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
_CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
_PASSED_ON = "Caught SlideError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\nMemoryError\n\nThe"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError(_BUS_ERROR), r"data\.num_workers=0.*--shm-size"),
        (RuntimeError(_NO_SPACE), r"data\.num_workers=0.*--shm-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), r"GPU.*data\.batch_size"),
        (torch.OutOfMemoryError(), r"GPU.*data\.batch_size"),
        (RuntimeError("CUDA error: out of memory"), r"GPU.*data\.batch_size"),
        (RuntimeError(_CPU_ALLOCATOR), "more memory"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (RuntimeError("could not create a primitive"), "more memory"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible"), "ulimit -n"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to resize file </torch_1_2_0> to the right size: File too large (27)"), "ulimit -f"),
        (RuntimeError("std::bad_alloc"), "more memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "more memory"),
        (cv2.error("OpenCV(4.11) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"), "more memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "more memory"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "ulimit -u"),
        (MemoryError(), "more memory"),
        (SlideError(_PASSED_ON), "more memory"),
    ],
)
def test_find_exhaustion_names_memory_and_remedy(error: Exception, remedy: str) -> None:
    found = find_exhaustion(error)
    assert found is not None
    assert found.__cause__ is error
    with pytest.raises(ExhaustedError, match=remedy):
        raise found


@pytest.mark.parametrize(
    "error",
    [
        SlideError("a.tiff: segment 3 of level 0 does not decode: insufficient memory"),
        ValueError("ZSTD_decompress returned 'Allocation error : not enough memory'"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ConfigError("trainer.devices=9: out of memory of elephants"),
    ],
)
def test_find_exhaustion_other_errors_are_none(error: Exception) -> None:
    assert find_exhaustion(error) is None


def test_faults_collect_memory_error_is_no_fault_of_an_option() -> None:
    fault = ConfigError("model.encoder_name=resnet18 cannot be built")
    fault.__cause__ = RuntimeError(_CPU_ALLOCATOR)
    with pytest.raises(ExhaustedError), Faults().collect():
        raise fault


_LIMITED = """
import resource, sys
from pathlib import Path
from panda.audit.records import RecordFolder
from panda.audit.slide_table import index_by_slide
from panda.data.slide_rows import read_rows
from panda.data.extraction import extract_store
from panda.data.manifest import read_manifest
from panda.data.settings import PatchSettings
from panda.errors import find_exhaustion

root, out = map(Path, sys.argv[1:3])
def extract():
    extract_store(read_manifest(root), PatchSettings(level=0), out, root, workers=1, progress=False)
def inspect():
    RecordFolder(out, root).inspect(next(iter(index_by_slide(read_rows(root)).values())))

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20, resource.RLIM_INFINITY))
for work in (extract, inspect):
    try:
        work()
    except Exception as error:
        print(find_exhaustion(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
@pytest.mark.parametrize("mib", [1, 14])
def test_limited_memory_is_no_fault_of_a_slide(tmp_path: Path, mib: int) -> None:
    root = draw_dataset(tmp_path / "data", SyntheticSpec(slides=4, width=2048, height=1536), progress=False)
    command = [sys.executable, "-c", _LIMITED, str(root), str(tmp_path / "out"), str(mib)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("memory of the computer") == 2, done.stdout + done.stderr


def run_exhausted(target: str, error: Exception, work: Callable[[], object], remedy: str = "exhausted") -> None:
    """Check that work raises `ExhaustedError` with a remedy while a function of it fails."""
    with patch(target, side_effect=error), pytest.raises(ExhaustedError, match=remedy):
        work()


NO_THREAD = RuntimeError("can't start new thread")
NO_FILE = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("target", "error", "remedy"),
    [
        ("threading.Thread.start", NO_THREAD, "ulimit -u"),
        ("panda.data.extraction.find_tissue", NO_THREAD, "ulimit -u"),
        ("panda.data.extraction.find_tissue", MemoryError(), "more memory"),
        ("panda.data.settings.PatchSettings.open_labels", NO_FILE, "ulimit -n"),
        ("panda.wsi.readers.OpenSlideReader.read", MemoryError(), "more memory"),
        ("panda.data.extraction.prepare_store", NO_FILE, "ulimit -n"),
        ("panda.data.extraction.write_beside", NO_FILE, "ulimit -n"),
    ],
)
def test_extract_store_exhaustion_is_no_fault_of_a_slide(
    tmp_path: Path, target: str, error: Exception, remedy: str
) -> None:
    records = make_folder(tmp_path / "data", 2)
    settings = PatchSettings(level=0, patch_size=64, reader="openslide")

    def extract() -> StoreResult:
        return extract_store(records, settings, tmp_path / "out", tmp_path / "data", progress=False)

    run_exhausted(target, error, extract, remedy)
    assert len(extract().slides) == 2


@pytest.mark.parametrize("error", [NO_THREAD, MemoryError(), NO_FILE])
def test_estimate_stains_exhaustion_is_no_fault_of_a_slide(tmp_path: Path, error: Exception) -> None:
    records, settings = make_folder(tmp_path / "data", 2), PatchSettings(level=0, patch_size=64)
    result = extract_store(records, settings, tmp_path / "out", tmp_path / "data", progress=False)
    for target in ("threading.Thread.start", "panda.data.stain_estimates.find_stain"):
        run_exhausted(target, error, lambda: estimate_stains(result, settings))
    assert len(estimate_stains(result, settings)[1]) == 2


@pytest.mark.parametrize("target", ["threading.Thread.start", "panda.synthetic.dataset.draw_slide"])
@pytest.mark.parametrize("error", [NO_THREAD, MemoryError(), NO_FILE])
def test_draw_dataset_exhaustion_is_named(tmp_path: Path, target: str, error: Exception) -> None:
    spec = SyntheticSpec(slides=2, width=1024, height=768)
    run_exhausted(target, error, lambda: draw_dataset(tmp_path / "data", spec, progress=False))
    assert draw_dataset(tmp_path / "data", spec, progress=False).is_dir()


GPU_FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
)


@pytest.mark.parametrize("step", ["segmentation.Segmenter.forward", "mil.MILNet.encode"])
def test_infer_gpu_memory_exhausted_is_one_message(tmp_path: Path, step: str) -> None:
    slides = [record.image_path for record in make_folder(tmp_path / "data", 2)]
    given = (
        f"checkpoint={segmentation_checkpoint(tmp_path / 'best.ckpt')}",
        f"grading_checkpoint={grading_checkpoint(tmp_path / 'grader.ckpt')}",
        f"slides={slides[0].parent}",
        "engine.device=cpu",
        "engine.batch_size=4",
    )
    with patch(f"panda.models.{step}", side_effect=GPU_FULL):
        done = run_entry_point("infer", tmp_path, *given)
    assert_one_message(done, "the memory of the GPU is exhausted", "engine.batch_size")
    assert read_output_table(tmp_path / "out" / "failures.csv") == []


def assert_one_message(done: Done, what: str, remedy: str) -> None:
    """Check that a command ended with one error, which names what ran out and the remedy."""
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    (message,) = [line for line in done.stderr.splitlines() if "Error: " in line]
    assert f"ExhaustedError: {what}" in message
    assert remedy in message


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "grading"])
def test_train_gpu_memory_exhausted_is_one_message(tmp_path: Path, task: str) -> None:
    make_folder(tmp_path / "data", 8)
    common = ("data=panda", "data.root=data", "trainer=cpu", "data.num_workers=0", "logger=csv", "name=x")
    step, remedy, *own = {
        "segmentation": (
            "panda.tasks.segmentation.SegmentationTask.forward",
            "data.batch_size (segmentation)",
            "data.patch_size=64",
            "model.encoder_name=resnet18",
        ),
        "grading": (
            "panda.models.mil.MILNet.forward",
            "tiles.batch_size or model.chunk (grading)",
            "task=grading",
            "tiles=tissue",
            "tiles.tile_size=64",
        ),
    }[task]
    with patch(step, side_effect=GPU_FULL):
        done = run_entry_point("train", tmp_path, *common, *own)
    assert_one_message(done, "the memory of the GPU is exhausted", remedy)
    end = JobEnd.read(tmp_path / "runs" / task / "x")
    assert end
    assert end.message.startswith("ExhaustedError: ")


@pytest.mark.parametrize("error", [GPU_FULL, MemoryError()])
def test_check_patch_size_exhaustion_is_no_fault_of_the_size(error: Exception) -> None:
    network = Segmenter("unet", "resnet18", decoder_channels=[16, 16, 8, 8, 8])
    run_exhausted("panda.models.segmentation.Segmenter.forward", error, lambda: network.check_patch_size(64))


_FEW_FILES = """
import resource, runpy, sys
import panda.app.train
sys.argv = ["train.py", *sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)),) * 2)
runpy.run_path(r"{script}", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on open files")
@pytest.mark.parametrize("files", [16])
def test_train_few_open_files_with_workers_is_one_message(tmp_path: Path, files: int) -> None:
    make_folder(tmp_path / "data", 8)
    script = _FEW_FILES.format(script=REPOSITORY / "train.py")
    own = ("data.patch_size=64", "model.encoder_name=resnet18", "data.num_workers=2", "trainer.max_epochs=1")
    common = ("data=panda", "data.root=data", "trainer=cpu", "logger=csv", "name=x")
    command = [sys.executable, "-c", script, str(files), *common, *own]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert_one_message(Done(done.returncode, done.stderr), "the limit on open files (ulimit -n)", "data.num_workers=0")
