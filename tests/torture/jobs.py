"""The jobs that are tortured, each short, on drawn slides."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import wandb  # noqa: F401  (imported once here, and not in each child)
from hydra.core.global_hydra import GlobalHydra

import panda.app.audit
import panda.app.infer
import panda.app.train  # noqa: F401
from panda.app.entry_point import forget_refusals
from panda.data.extraction import extract_store
from panda.data.manifest import read_manifest
from panda.data.samplers import SamplerName
from panda.data.settings import PatchSettings, StoreKind
from panda.files import remove
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.tasks.threshold import search_threshold
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.integration.entry_points import REPOSITORY
from tests.panda_folder import make_folder

SLIDES = 10
_TRAIN = (
    "data=panda", "data.root=data", "data.level=1", "data.patch_size=64", "data.batch_size=8", "data.store=png",
    "model.encoder_name=mobilenet_v2", "model.decoder_channels=[16,16,8,8,8]", "task.overlap=0.25", "task.panels=0",
    "task.views_every=0", "trainer=cpu", "logger=csv",
)  # fmt: skip
_RUNS = Path("runs/segmentation")


@dataclass(frozen=True)
class Job:
    """Some work in a home folder.

    Attributes:
        name: For the table.
        run: Does the work in the present folder, from its start or from where it was killed.
        output: The folder that it makes, relative to the home.
        prepare: Puts the output into its state before the work; by default it is absent.
    """

    name: str
    run: Callable[[], None]
    output: Path
    prepare: Callable[[], None] | None = None

    @property
    def kind(self) -> str:
        """The kind of work, over which time and kills are shared: jobs that train or extract are one kind each."""
        return next((kind for kind in ("extract", "train") if self.name.startswith(f"{kind} ")), self.name)

    @property
    def needs_store(self) -> bool:
        """Whether it trains, for which patches are cut once beforehand."""
        return self.output.parts[0] == "runs"

    def reset(self, home: Path) -> None:
        """Undo all work of this job."""
        remove(home / self.output)
        for left in (home / self.output).parent.glob(f".{self.output.name}.*"):
            remove(left)
        if self.prepare:
            here = Path.cwd()
            os.chdir(home)
            try:
                self.prepare()
            finally:
                os.chdir(here)

    def enter(self, home: Path) -> Callable[[], None]:
        """Return the work in a home folder, for a child."""

        def work() -> None:
            os.chdir(home)
            self.run()

        return work


def make_home(home: Path) -> None:
    """Write what all jobs need: slides, masks, a table and checkpoints of untrained networks."""
    home.mkdir(parents=True, exist_ok=True)
    make_folder(home / "data", SLIDES)
    few = home / "few"
    few.mkdir()
    for path in sorted((home / "data" / "train_images").iterdir())[:3]:
        (few / path.name).symlink_to(path.resolve())
    # at 0.44 about half of the tissue is tumour, so that regions are drawn and areas compared
    threshold = search_threshold({}).model_copy(update={"value": 0.44})
    segmentation_checkpoint(home / "segmentation.ckpt", threshold=threshold)
    grading_checkpoint(home / "grading.ckpt")


def _enter(name: str, *overrides: str) -> None:
    """Run an entry point in this process, which ends it."""
    GlobalHydra.instance().clear()
    forget_refusals()
    sys.argv = [str(REPOSITORY / f"{name}.py"), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _draw() -> None:
    draw_dataset(Path("drawing/drawn"), SyntheticSpec(slides=4, width=640, height=512), progress=False)


def _extract(kind: StoreKind) -> Callable[[], None]:
    def run() -> None:
        settings = PatchSettings(level=1, patch_size=64, store=kind)
        result = extract_store(read_manifest(Path("data")), settings, f"cut_{kind}", "data", progress=False)
        for failure in result.failures:
            print(failure)
        sys.exit(bool(result.failures))

    return run


def _train(name: str, *overrides: str) -> Callable[[], None]:
    last = _RUNS / name / "checkpoints" / "last.ckpt"

    def run() -> None:
        if last.exists():
            _enter("train", f"resume={last}")
        _enter("train", *_TRAIN, *overrides, f"name={name}")

    return run


def _sweep() -> None:
    _enter("train", "-m", *_TRAIN, "trainer.max_epochs=1", "seed=1,2", "test_slides=false", "name=swept")


def _infer(output: str, *overrides: str) -> Callable[[], None]:
    def run() -> None:
        # by default the precision is chosen by a trial that takes time, so another run may choose another one
        engine = ("engine.device=cpu", "engine.precision=fp32")
        _enter("infer", "checkpoint=segmentation.ckpt", "slides=few", f"output={output}", *engine, *overrides)

    return run


def _audit() -> None:
    _enter("audit", "data=panda", "data.root=data", "output=audit", "audit.workers=2")


def _restore_trained() -> None:
    """Copy the run whose training is complete and whose threshold is not chosen yet."""
    shutil.copytree(_RUNS / "trained", _RUNS / "threshold", symlinks=True)


def train_template(home: Path) -> Callable[[], None]:
    """Return the work that trains the run from which the threshold search continues."""

    def work() -> None:
        os.chdir(home)
        _train("trained", "trainer.max_epochs=1")()

    return work


def make_jobs() -> dict[str, Job]:
    """Return all jobs by name."""
    jobs = [Job("draw", _draw, Path("drawing"))]
    jobs += [Job(f"extract {kind}", _extract(kind), Path(f"cut_{kind}")) for kind in get_args(StoreKind)]
    for sampler in get_args(SamplerName):
        for workers in (0, 2):
            name = f"{sampler}{workers}"
            given = (f"data.sampler={sampler}", f"data.num_workers={workers}", "trainer.max_epochs=3")
            train = _train(name, *given, "test_slides=false")
            jobs.append(Job(f"train {sampler}, {workers} workers", train, _RUNS / name))
    jobs += [
        Job("threshold", _train("threshold"), _RUNS / "threshold", _restore_trained),
        Job("infer", _infer("out"), Path("out")),
        Job("infer and grade", _infer("graded", "grading_checkpoint=grading.ckpt"), Path("graded")),
        Job("audit", _audit, Path("audit")),
        Job("sweep", _sweep, _RUNS / "sweep-swept"),
    ]
    return {job.name: job for job in jobs}
