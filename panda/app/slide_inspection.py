"""Inspect the slides of an audit: with processes of this machine, or on the workers of a cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from panda.app.cluster import ClusterSettings, WorkerCluster
from panda.app.entry_point import make_folder
from panda.app.slide_division import require_slides_here, sample_slides
from panda.audit.dataset import Audit, Inspector
from panda.audit.records import RecordFolder
from panda.data.slide_rows import SlideRow
from panda.errors import PandaError
from panda.files import fingerprint
from panda.wsi.label_maps import get_label_maps

if TYPE_CHECKING:  # an optional package
    from panda.app.cluster_map import SlideCluster

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideInspection:
    """How slides are inspected, for the workers of a cluster.

    Attributes:
        records: The folder of the records; a worker writes those of its slides itself.
        sample: Slides of which a worker must see one.
        facts: Digest of the label maps.
    """

    records: RecordFolder
    sample: Sequence[Path]
    facts: str

    @classmethod
    def from_audit(cls, audit: Audit) -> SlideInspection:
        """Return the inspection of an audit."""
        return cls(audit.records, sample_slides([row.image_path for row in audit.slides]), _digest_label_maps())

    def load(self) -> SlideInspection:
        """Prepare this process.

        Raises:
            PandaError: If a label map or a slide here is not the one of the driver.
        """
        if _digest_label_maps() != self.facts:
            raise PandaError("its label maps are others than those of this command: share one conf/label_maps")
        require_slides_here(self.sample)
        cv2.setNumThreads(1)
        return self

    def __call__(self, row: SlideRow) -> int:
        """Inspect a slide, write its record, and return the number of findings."""
        return self.records.inspect(row)


@contextlib.contextmanager
def open_inspector(audit: Audit, cluster: ClusterSettings, workers: int) -> Iterator[Inspector]:
    """Make the folder of an audit, and yield what inspects its slides; no worker starts if all are inspected already.

    Args:
        audit: The audit.
        cluster: Where the slides are inspected.
        workers: The number of processes of this machine, if it is not a cluster.

    Raises:
        PandaError: If there are no workers, or one of them does not fit. The folder is then as it was.
    """
    if not isinstance(cluster, WorkerCluster) or audit.is_finished():
        make_folder(audit.out)
        yield audit.use_processes(workers)
        return
    from panda.app.cluster_map import open_cluster  # noqa: PLC0415  (an optional package)

    with open_cluster(cluster.leave_out_gpus(), SlideInspection.from_audit(audit), audit.out) as found:
        yield lambda rows: inspect_on_cluster(found, rows)


def inspect_on_cluster(
    cluster: SlideCluster[str], rows: Sequence[SlideRow]
) -> Generator[tuple[SlideRow, int | None], None, None]:
    """Let workers inspect slides, see `Inspector`."""
    from panda.app.cluster_map import DeadlySlideError  # noqa: PLC0415

    for row, found in cluster.map(rows):
        if isinstance(found, DeadlySlideError):
            log.warning("slide %s: %s", row.slide_id, found)
        elif isinstance(found, Exception):  # the next slide would meet it too, because faults are findings
            raise found
        yield row, None if isinstance(found, Exception) else found


def _digest_label_maps() -> str:
    return fingerprint({name: labels.model_dump(mode="json") for name, labels in get_label_maps().items()})
