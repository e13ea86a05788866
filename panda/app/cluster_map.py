"""The driver's side of a cluster: make its workers ready, and give them slides one by one."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Generic, TypeVar

from distributed import Client, Future, wait
from distributed.scheduler import KilledWorker

from panda.app.cluster import WorkerCluster
from panda.app.cluster_worker import (
    OTHER_RESULTS,
    SHARE,
    Description,
    SlideWorker,
    Terms,
    Work,
    WorkerRefusal,
    describe_worker,
    run_on_worker,
)
from panda.app.entry_point import make_folder
from panda.data.call_outcome import CallOutcome
from panda.errors import PandaError
from panda.soft_lock import Holder

Item = TypeVar("Item")
Facts = TypeVar("Facts")

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""Workers that a slide may kill until it is a failure; and times that all may end while they load the work."""
_WAIT_S = 5.0
"""Seconds between two looks at the number of workers."""
_CONTINUE = "finished slides are kept, and the same command continues from there"


class DeadlySlideError(PandaError):
    """A slide that ended `MOST_DEATHS` workers."""


class SlideCluster(Generic[Facts]):
    """Workers that are ready for the slides of one command.

    Attributes:
        facts: Of the work that they loaded, equal on all of them.
    """

    def __init__(self, client: Client, settings: WorkerCluster, name: str) -> None:
        self._client, self._settings, self._name = client, settings, name
        self.facts: Facts

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """Work on slides, one on each worker, and yield each with its result or its error when it is done.

        A worker that comes later and does not fit is retired. A slide whose worker ends is given to another one. If it
        ends `MOST_DEATHS` of them, its error says so. dask's own count also blames slides that only waited for the same
        worker, so there are not more slides at a time than workers.

        Raises:
            PandaError: If the scheduler is lost, or no worker that is left fits.
        """
        upcoming, running = deque(items), dict[Future[CallOutcome[Any]], Item]()
        deaths: Counter[Item] = Counter()
        try:
            while True:
                for _ in range(min(len(upcoming), max(1, len(self._client.nthreads())) - len(running))):
                    item = upcoming.popleft()
                    running[self._submit(item)] = item
                if not running:
                    return
                for future in self._wait(list(running)):
                    item = running.pop(future)
                    try:
                        yield item, future.result().unpack()
                    except KilledWorker as error:
                        deaths[item] += error.allowed_failures + 1
                        if deaths[item] < MOST_DEATHS:
                            upcoming.appendleft(item)
                        else:
                            yield item, _describe_deaths(deaths[item])
                    except WorkerRefusal as refusal:
                        upcoming.appendleft(item)
                        self._retire(refusal)
                    except CancelledError:
                        raise
                    except Exception as error:
                        yield item, error
        except (CancelledError, OSError) as error:
            raise _describe_loss(error) from error
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                self._client.cancel(list(running))

    def _submit(self, item: Item) -> Future[CallOutcome[Any]]:
        key = f"{self._name}-{uuid.uuid4().hex}"
        return self._client.submit(run_on_worker, self._name, item, self.facts, pure=False, key=key)

    def _retire(self, refusal: WorkerRefusal) -> None:
        """End a worker that does not fit, with a warning, if there are others."""
        if not self._client.nthreads().keys() - {refusal.address}:
            raise refusal
        log.warning("%s; it is retired, and the others do its slides", refusal)
        self._client.retire_workers([refusal.address], close_workers=True)

    def _wait(self, futures: list[Future[CallOutcome[Any]]]) -> set[Future[CallOutcome[Any]]]:
        """Return the futures that are done, after a while also none."""
        try:
            done: set[Future[CallOutcome[Any]]] = wait(futures, timeout=_WAIT_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            return set()
        return done

    def wait_for_worker(self) -> None:
        """Wait for the first worker, as a job can wait long in its queue."""
        waited = False
        while True:
            with contextlib.suppress(TimeoutError):
                self._client.wait_for_workers(1, timeout=_WAIT_S)
                return
            if not waited:
                log.info("waiting for the first worker of %s", self._client.scheduler_info(n_workers=0)["address"])
            waited = True
            self._settings.check_workers()

    def make_ready(self, plugin: SlideWorker[Facts]) -> None:
        """Let all workers that are there load the work, and compare what they say."""
        found = self._load(plugin)
        faults = [one.refusal for one in found.values() if one.refusal]
        faults += [
            f"what the worker {address} writes to {one.answer.parent} does not arrive here: {SHARE}"
            for address, one in found.items()
            if one.answer and not one.answer.exists()
        ]
        ready = {address: one.facts for address, one in found.items() if one.facts is not None}
        if ready:
            self.facts = next(iter(ready.values()))
        elif not faults:
            faults.append(f"the workers ended before they were ready: start the command again; {_CONTINUE}")
        if other := [address for address, facts in ready.items() if facts != self.facts]:
            faults.append(f"the worker {', '.join(other)} {OTHER_RESULTS}")
        if faults:
            raise PandaError("\n".join(faults))
        log.info("%d workers are ready", len(ready))

    def _load(self, plugin: SlideWorker[Facts]) -> dict[str, Description[Facts]]:
        """Let workers load the work, and return what those say that are still there, by address."""
        found = dict[str, Description[Facts]]()
        try:
            with contextlib.suppress(OSError):  # a worker was lost just now; those that come get the plugin too
                self._client.register_plugin(plugin, name=self._name)
            for _ in range(MOST_DEATHS):
                # One that came just now, or was lost, is passed over.
                found = self._client.run(describe_worker, self._name, on_error="ignore")
                if found:
                    break
                self.wait_for_worker()
        except OSError as error:
            raise _describe_loss(error) from error
        except PandaError:
            raise
        except Exception as error:  # dask has no single type for what a worker cannot import
            raise PandaError(
                f"a worker has no panda-wsi, or another version of it ({error}): install the same version there, and "
                "start the worker again"
            ) from error
        return found


@contextlib.contextmanager
def open_cluster(settings: WorkerCluster, work: Work[Facts], folder: Path) -> Iterator[SlideCluster[Facts]]:
    """Connect to workers, and let each load the work; workers that come later do the same before their first slide.

    Args:
        settings: Where they are.
        work: The work.
        folder: The output, which all workers must see. It is made, and removed again if the command is refused.

    Raises:
        PandaError: If there are no workers, or one of them does not fit.
    """
    name = f"panda-{uuid.uuid4().hex[:12]}"
    token = folder / f".{name}"
    terms = Terms(Path.cwd(), token, Holder.describe_self().format_record().decode())
    is_new = not folder.exists()
    make_folder(folder)
    _remove_tokens(folder)
    try:
        token.write_text(terms.content, encoding="utf-8")
        with settings.connect(folder) as client:
            found: SlideCluster[Facts] = SlideCluster(client, settings, name)
            found.wait_for_worker()
            try:
                found.make_ready(SlideWorker(name, work, terms, logging.getLogger("panda").getEffectiveLevel()))
                yield found
            finally:
                with contextlib.suppress(OSError, TimeoutError, KeyError):  # a scheduler is gone, a worker not ready
                    client.unregister_worker_plugin(name)
    finally:
        for path in folder.glob(f"{token.name}*"):
            path.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):  # it has results
                folder.rmdir()


def _remove_tokens(folder: Path) -> None:
    """Remove the tokens of killed commands of this machine, with the answers beside them."""
    for path in [*folder.glob(".panda-*")]:
        with contextlib.suppress(OSError):
            holder = Holder.parse(path.read_bytes())
            if holder and holder.is_here and holder.has_ended:
                for own in folder.glob(f"{path.name}*"):
                    own.unlink(missing_ok=True)


def _describe_loss(error: BaseException) -> PandaError:
    return PandaError(f"the scheduler of the workers is lost ({error}); {_CONTINUE}")


def _describe_deaths(count: int) -> DeadlySlideError:
    return DeadlySlideError(
        f"{count} workers ended while they worked on it, perhaps because memory ran out: give a worker more memory, "
        "or leave the slide out"
    )
