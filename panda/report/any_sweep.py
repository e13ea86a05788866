"""The jobs of a sweep, of trainings or of maps of slides: their states, their figures in lines, and their page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panda.report.map_jobs import MapJob, read_map_jobs
from panda.report.map_sweep_page import describe_maps, write_map_sweep
from panda.report.ranking import describe_ranking
from panda.report.sweep_jobs import Job, describe_states, is_successful, read_jobs
from panda.report.sweep_page import write_sweep


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep.

    Attributes:
        folder: Folder of the sweep, which gets table and page.
        jobs: The jobs.
        maps: What they found on slides; empty for jobs that train.
    """

    folder: Path
    jobs: Sequence[Job]
    maps: Sequence[MapJob]

    @property
    def failed(self) -> int:
        """Number of jobs that did not end well."""
        return sum(not is_successful(job) for job in self.jobs)

    def describe(self) -> list[str]:
        """Return the states of the jobs and their ranking, or what each found, in lines."""
        lines = describe_maps(self.maps) if self.maps else describe_ranking(self.folder, self.jobs)
        return [describe_states(self.jobs), *lines]

    def write(self) -> Path:
        """Write table and page, and return the page."""
        return write_map_sweep(self.folder, self.maps) if self.maps else write_sweep(self.folder, self.jobs)


def read_sweep(folder: Path) -> Sweep:
    """Read the jobs of a sweep from their folders."""
    maps = read_map_jobs(folder)
    return Sweep(folder, [one.job for one in maps] if maps else read_jobs(folder), maps)
