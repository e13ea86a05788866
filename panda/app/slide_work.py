"""The work of a command on slides: load it in this process or on the workers of a cluster, and let them do slides."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from panda.app.cluster import ClusterSettings, WorkerCluster
from panda.app.entry_point import log_to_file, make_folder
from panda.app.sharded_slides import ShardedSlides
from panda.app.slide_progress import SlideProgress
from panda.app.slide_tables import NamedResult
from panda.data.failures import Failure
from panda.settings import format_value

if TYPE_CHECKING:  # an optional package
    from panda.app.cluster_map import SlideCluster
    from panda.app.cluster_worker import LoadedWork

Loaded_co = TypeVar("Loaded_co", bound="LoadedWork[Any]", covariant=True)
Result = TypeVar("Result", bound=NamedResult)

log = logging.getLogger(__name__)


class LocalWork(Protocol[Loaded_co]):
    """Work that this process can load too, see `panda.app.cluster_worker.Work`."""

    def load(self) -> Loaded_co:
        """Load the networks."""


def begin_log(config: ShardedSlides, folder: Path, command: str) -> None:
    """Begin the log of a command in its folder, with the numbers of slides."""
    (paths, passed_over), part = config.slide_list, config.own_shard
    log_to_file(folder / f"{part.name_part(command) if part else command}.log")
    more = passed_over and f"; passed over: {passed_over}"
    log.info("slides=%s: %d slides%s", format_value(config.slides), len(paths), more)
    if part:
        log.info("shard %s: %d of them", part, len(config.own_slides))


@dataclass(frozen=True)
class DoneSlide(Generic[Result]):
    """A slide whose files are written, with the failure of its last step and the notes of the networks until now."""

    result: Result
    failure: Failure | None
    notes: tuple[str, ...]


@contextlib.contextmanager
def open_work(
    settings: ClusterSettings, work: LocalWork[Loaded_co], folder: Path
) -> Iterator[Loaded_co | SlideCluster[Any]]:
    """Load work here or on the workers of a cluster, and make the folder of the job.

    Args:
        settings: Where the slides are worked on.
        work: The work.
        folder: The folder. If it is new and the command is refused, it is removed again.

    Raises:
        PandaError: If there are no workers, or one of them does not fit.
    """
    if not isinstance(settings, WorkerCluster):
        loaded = work.load()
        make_folder(folder)
        yield loaded
        return
    from panda.app.cluster_map import open_cluster  # noqa: PLC0415  (an optional package)

    with open_cluster(settings, work, folder) as cluster:
        yield cluster


def run_on_cluster(cluster: SlideCluster[Any], paths: Sequence[Path], progress: SlideProgress) -> Iterable[str]:
    """Let workers do slides, and record them; return the notes of their networks."""
    notes: dict[str, None] = {}
    for path, done in cluster.map(paths):
        if isinstance(done, DoneSlide):
            progress.add(done.result, done.failure)
            notes |= dict.fromkeys(done.notes)
        else:
            progress.fail(path.stem, done)
    return notes
