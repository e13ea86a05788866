"""Memory that ran out ends a run with one message, and is never taken for the fault of a slide."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from panda.app.build import Faults
from panda.errors import ConfigError, ExhaustedError, SlideError, find_exhaustion
from panda.synthetic.dataset import SyntheticSpec, draw_dataset

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
from panda.audit.slide_table import index_by_slide, read_table
from panda.data.extraction import extract_store
from panda.data.manifest import read_manifest
from panda.data.settings import PatchSettings
from panda.errors import find_exhaustion

root, out = map(Path, sys.argv[1:3])
def extract():
    extract_store(read_manifest(root), PatchSettings(level=0), out, root, workers=1, progress=False)
def inspect():
    RecordFolder(out, root).inspect(next(iter(index_by_slide(read_table(root)).values())))

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
