"""The worker's side of a cluster: check that it fits the command, load the networks once, and work on slides."""

from __future__ import annotations

import asyncio
import os
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from distributed import Worker, WorkerPlugin, get_worker

from panda.app.software import describe_difference, list_software
from panda.data.call_outcome import CallOutcome, collect_logs
from panda.errors import PandaError

Item = TypeVar("Item")
Result = TypeVar("Result")
Facts_co = TypeVar("Facts_co", covariant=True)

SHARE = "give an output that all machines share, under the same path"
"""Remedy for a folder that a worker does not see."""
OTHER_RESULTS = (
    "would give other results than the first one: give engine.device and engine.precision, or workers of one kind"
)
"""Fault and remedy of a worker whose facts differ."""
_ARRIVAL_S = 10.0


class LoadedWork(Protocol[Facts_co]):
    """Work whose networks are loaded. It is called with one item, a slide, and returns what can be pickled."""

    @property
    def facts(self) -> Facts_co:
        """What the driver must know; it is equal on all workers, otherwise they would give different results."""

    def __call__(self, item: Any, /) -> Any:
        """Work on one slide."""


class Work(Protocol[Facts_co]):
    """Work on slides that can be pickled to workers."""

    def load(self) -> LoadedWork[Facts_co]:
        """Load the networks.

        Raises:
            PandaError: If this worker does not see the same files as the driver.
        """


@dataclass(frozen=True)
class Terms:
    """What a worker must have in common with the driver.

    Attributes:
        working_folder: Of the driver; relative paths begin there.
        token: A file that the driver wrote into the output.
        content: Its content, which says who wrote it.
        software: Of the driver, see `list_software`.
    """

    working_folder: Path
    token: Path
    content: str
    software: Mapping[str, str] = field(default_factory=list_software)

    def check(self) -> Path:
        """Leave a file beside the token, for the driver to find, and return it.

        Raises:
            PandaError: If this process does not fit.
        """
        other, wanted = describe_difference(list_software(), self.software)
        if other:
            raise PandaError(
                f"it runs {other}, and this command {wanted}: install the same version there, and start the "
                "worker again"
            )
        folder, answer = self.working_folder / self.token.parent, Path(f"{self.token}.{uuid.uuid4().hex}")
        try:
            os.chdir(self.working_folder)
            found = self.token.read_text(encoding="utf-8")
            answer.touch()
        except OSError as error:
            raise PandaError(
                f"it does not see the output {folder}, or cannot write there ({error}): {SHARE}"
            ) from error
        if found != self.content:
            raise PandaError(f"it sees another folder as {folder}: {SHARE}")
        return answer


@dataclass(frozen=True)
class Description(Generic[Facts_co]):
    """What a worker says of itself.

    Attributes:
        refusal: Why it cannot work on the slides; empty if it can.
        facts: Of its work.
        answer: The file by which it shows that what it writes arrives.
    """

    refusal: str
    facts: Facts_co | None
    answer: Path | None


class SlideWorker(WorkerPlugin, Generic[Facts_co]):
    """Makes a worker ready for the slides of one command, and works on them.

    Args:
        name: Of the plugin, another one for each command.
        work: The work.
        terms: What the worker must have in common with the driver.
        level: Level of the log messages that go to the driver.
    """

    def __init__(self, name: str, work: Work[Facts_co], terms: Terms, level: int) -> None:
        self.name = name
        self._terms, self._level = terms, level
        self._loaded: LoadedWork[Facts_co] | None = None
        self._facts: Facts_co | None = None
        self._answer: Path | None = None
        self._refusal = ""
        self._loading: asyncio.Task[None] | None = None
        self._work = pickle.dumps(work)  # a worker imports what it needs beside its event loop

    async def setup(self, worker: Worker) -> None:
        """Load the work. An error is kept for the driver, because dask loses that of a worker that comes later."""
        self._loading = asyncio.create_task(asyncio.to_thread(self._load, worker.address, worker.state.nthreads))
        await self._loading

    def _load(self, address: str, threads: int) -> None:
        try:
            if threads != 1:
                raise PandaError(
                    f"it has {threads} threads, and works on one slide at a time: start it with --nthreads 1"
                )
            self._answer = self._terms.check()
            self._records = collect_logs(self._level)
            loaded: LoadedWork[Facts_co] = pickle.loads(self._work).load()
            self._loaded, self._facts = loaded, loaded.facts
        except Exception as error:
            text = str(error) if isinstance(error, PandaError) else f"{type(error).__name__}: {error}"
            self._refusal = f"the worker {address} cannot work on these slides: {text}"

    def run(self, item: Item, facts: object, address: str) -> CallOutcome[Any]:
        """Work on one slide, if the facts of this worker are those of the others."""
        if self._loaded is None or self._facts != facts:
            raise WorkerRefusal(self._refusal or f"the worker {address} {OTHER_RESULTS}", address)
        os.chdir(self._terms.working_folder)  # another command may use this worker too
        return CallOutcome.record_call(self._loaded, item, self._records)

    async def describe(self) -> Description[Facts_co]:
        """Return what the driver must know before the first slide, when the work is loaded."""
        if self._loading is not None:
            await self._loading
        return Description(self._refusal, self._facts, self._answer)


class WorkerRefusal(PandaError):
    """A worker that does not fit the command; its arguments are the reason and the address."""

    @property
    def address(self) -> str:
        """Where the worker is."""
        return cast(str, self.args[1])

    def __str__(self) -> str:
        return cast(str, self.args[0])


def run_on_worker(name: str, item: Any, facts: object) -> CallOutcome[Any]:
    """Work on one slide with the plugin of this worker."""
    worker = get_worker()
    if name not in worker.plugins:
        raise WorkerRefusal(f"the worker {worker.address} did not get the work", worker.address)
    return cast(SlideWorker[Any], worker.plugins[name]).run(item, facts, worker.address)


async def describe_worker(name: str, dask_worker: Worker) -> Description[Any]:
    """Return what the plugin of a worker says of it.

    Raises:
        TimeoutError: If the worker does not get the plugin.
    """
    async with asyncio.timeout(_ARRIVAL_S):
        while name not in dask_worker.plugins:  # it is on its way if registering ended early at a lost worker
            await asyncio.sleep(0.05)
    return await cast(SlideWorker[Any], dask_worker.plugins[name]).describe()
