"""`audit(cfg)`: find what is wrong with a data set; the command is `python audit.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from panda.app.build import Faults
from panda.app.cluster import WorkerCluster
from panda.app.config_check import check_config
from panda.app.entry_point import close_logs, log_to_file
from panda.app.hydra_job import find_idle_faults, is_multirun, list_overrides
from panda.app.output_folder import OutputKeys
from panda.app.registry import find_undeclared
from panda.app.slide_division import DivisionKeys
from panda.audit.audit_run import AuditRun
from panda.data.settings import TableSettings
from panda.settings import Settings, count_cores, rule

if TYPE_CHECKING:  # slow to import, see `audit`
    from panda.audit.tables import AuditSummary

DATA = "panda.data.datamodule.DataSettings"
"""What `data` builds in a training, which an audit does not import."""


class AuditSettings(Settings):
    """Settings of an audit.

    Attributes:
        slides: Inspect slides and masks; otherwise only the table is read.
        workers: Slides inspected at the same time, each in its own process; None for one a core.
        deep: Decode every tile and count masks at level 0.
    """

    node: ClassVar[str] = "audit"

    slides: bool = True
    workers: int | None = Field(default=None, ge=1, le=1024, description="null is one process a core")
    deep: bool = False

    @rule
    def _check_deep(self) -> Iterator[str]:
        if self.deep and not self.slides:
            yield "audit.deep=true needs audit.slides=true: the table alone has no tiles"


class AuditConfig(DivisionKeys, OutputKeys):
    """Keys and nodes of `conf/audit.yaml`."""

    entry_point: ClassVar[str] = "audit"

    data: TableSettings
    audit: AuditSettings
    collect: None
    debug: bool

    @property
    def run(self) -> AuditRun:
        """What is inspected, and how."""
        data = self.data
        return AuditRun(
            data=str(data.source),
            labels=data.labels,
            options=data.slide_options,
            deep=self.audit.deep,
            empty_means_benign=data.empty_means_benign,
            choices=tuple(text for text in list_overrides() if text.startswith("data")),
        )

    @rule
    def _check_folder(self) -> None:
        from panda.audit.dataset import check_output  # noqa: PLC0415  (--help does not wait for it)

        for source in filter(None, (self.data.root, self.data.table)):
            check_output(Path(self.run_dir), source, slides=self.audit.slides)

    @rule
    def _check_parts(self) -> Iterator[str]:
        has_workers, slides = isinstance(self.cluster, WorkerCluster), self.audit.slides
        if self.shard is not None and not slides:
            yield f"{self.setting('shard')} needs audit.slides=true: the table alone is read at once"
        if self.shard is not None and is_multirun():
            yield f"{self.setting('shard')}: each job of a multirun has an output of its own; start a command for each"
        if has_workers and not slides:
            yield "cluster=… needs audit.slides=true: the table alone is read by this process"
        if has_workers and self.shard is not None:
            yield f"{self.setting('shard')} and cluster=…: a cluster divides the slides itself; give one of them"
        if has_workers:
            yield from find_idle_faults(["audit.workers", "cluster.gpus"], "a cluster that inspects slides")


@close_logs
def audit(cfg: DictConfig) -> AuditSummary | None:
    """Audit a data set, write its report and return its summary.

    Args:
        cfg: `conf/audit.yaml` as Hydra composed it, with `run_dir`.

    Returns:
        The summary; None for a shard, except for the last one.

    Raises:
        ConfigError: If the configuration has faults; the message lists all of them.
        ManifestError: If the table of slides is faulty.
        PandaError: If workers of a cluster do not fit, or did not see the same files.
    """
    config = check(cfg)
    data, part = config.data, config.own_shard
    from panda.app.audit_collection import (  # noqa: PLC0415  (--help does not wait for it)
        require_all,
        write_results,
        write_results_once,
    )
    from panda.app.collection import log_shard_end  # noqa: PLC0415
    from panda.app.slide_inspection import open_inspector  # noqa: PLC0415
    from panda.audit.dataset import WHOLE, Audit  # noqa: PLC0415
    from panda.synthetic.dataset import draw_dataset  # noqa: PLC0415

    if data.draw is not None and data.root is not None:
        draw_dataset(data.root, data.draw)
    found = Audit(config.run, Path(config.run_dir), slides=config.audit.slides)
    with open_inspector(found, config.cluster, config.audit.workers or count_cores()) as inspector:
        log_to_file(found.out / f"{part.name_part('audit') if part else 'audit'}.log")
        if config.audit.slides:
            found.inspect(inspector, part or WHOLE)
    if part is not None and not found.has_all():
        log_shard_end(part, "audit", found.out)
        return None
    if isinstance(config.cluster, WorkerCluster):
        require_all(found)
    return write_results(found) if part is None else write_results_once(found)


def check(cfg: DictConfig, faults: Faults | None = None) -> AuditConfig:
    """Check a configuration. Faults that were found before are raised with its own.

    An audit does not build the data module, so that options of `data` which it does not use are left out first.
    """
    faults, pruned = faults or Faults(), cfg.copy()
    if isinstance(data := cfg.get("data"), DictConfig):
        given: Any = OmegaConf.to_container(data)
        used = {key: given.pop(key) for key in TableSettings.model_fields if key in given}
        if (target := given.pop("_target_", None)) != DATA:
            faults.add(f"data._target_={target} is not allowed: data builds {DATA} only")
        faults.add(*find_idle_faults([f"data.{key}" for key in given], "audit.py"))
        faults.add(*find_undeclared("data", given, {}))
        pruned.data = {"_target_": f"{TableSettings.__module__}.{TableSettings.__name__}", **used}
    config: AuditConfig = check_config(pruned, "audit", faults)
    return config
