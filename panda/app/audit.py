"""`audit(cfg)`: find what is wrong with a data set; the command is `python audit.py`."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from panda.app.build import Faults
from panda.app.config_check import check_config
from panda.app.entry_point import close_logs, log_to_file, make_folder
from panda.app.hydra_job import find_idle_faults, list_overrides
from panda.app.registry import find_undeclared
from panda.choices import name_command
from panda.data.settings import TableSettings
from panda.files import hold_lock
from panda.settings import Settings, Text, count_cores, format_override, rule

if TYPE_CHECKING:  # slow to import, see `audit`
    from panda.audit.tables import AuditSummary

log = logging.getLogger(__name__)

DATA = "panda.data.datamodule.DataSettings"
"""What `data` builds in a training, which an audit does not import."""
SPOILT_LABELS = ("missing_mask", "empty_mask_graded", "benign_mask_cancer_grade", "cancer_mask_benign_grade")
"""Warnings whose slides would train a segmentation wrongly."""


class AuditSettings(Settings):
    """Settings of an audit.

    Attributes:
        slides: Inspect slides and masks; otherwise only the table is read.
        output: Folder to write to.
        workers: Slides inspected at the same time, each in its own process; None for one a core.
        deep: Decode every tile and count masks at level 0.
    """

    node: ClassVar[str] = "audit"

    slides: bool = True
    output: Text = "audit"
    workers: int | None = Field(default=None, ge=1, le=1024, description="null is one process a core")
    deep: bool = False

    @rule
    def _check_output(self) -> Iterator[str]:
        if (Path(self.output) / "checkpoints").is_dir():
            yield f"{self.setting('output')} is the folder of a training run: give a folder of its own"

    @rule
    def _check_deep(self) -> Iterator[str]:
        if self.deep and not self.slides:
            yield "audit.deep=true needs audit.slides=true: the table alone has no tiles"


class AuditConfig(Settings):
    """Keys and nodes of `conf/audit.yaml`."""

    node: ClassVar[str] = ""

    data: TableSettings
    audit: AuditSettings
    debug: bool
    run_dir: Text


@close_logs
def audit(cfg: DictConfig) -> AuditSummary:
    """Audit a data set, write its report and return its summary.

    Args:
        cfg: `conf/audit.yaml` as Hydra composed it, with `run_dir`.

    Raises:
        ConfigError: If the configuration has faults; the message lists all of them.
        ManifestError: If the table of slides is faulty.
    """
    config = check(cfg)
    data, settings = config.data, config.audit
    from panda.audit.dataset import audit_folder  # noqa: PLC0415  (--help does not wait for them)
    from panda.audit.page import write_audit_page  # noqa: PLC0415
    from panda.audit.tables import AUDIT, FINDINGS_TABLE  # noqa: PLC0415
    from panda.synthetic.dataset import draw_dataset  # noqa: PLC0415

    out = Path(config.run_dir)
    make_folder(out)
    log_to_file(out / "audit.log")
    if data.draw is not None and data.root is not None:
        draw_dataset(data.root, data.draw)
    summary = audit_folder(
        data.source,
        out,
        labels=data.labels,
        slides=settings.slides,
        workers=settings.workers or count_cores(),
        deep=settings.deep,
        options=data.slide_options,
        empty_means_benign=data.empty_means_benign,
    )
    with hold_lock(out / AUDIT):  # as for the tables
        report = write_audit_page(out, next_steps := list_next_steps(summary, out)).name
    for line in describe_summary(summary):
        log.info("%s", line)
    for level in summary.levels:
        log.log(logging.WARNING if level.is_mixed else logging.INFO, "%s", level.describe())
    log.info("findings of each slide: %s", out / FINDINGS_TABLE)
    log.info("report: %s", out / report)
    for step in next_steps:
        log.info("next: %s", step)
    return summary


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


def describe_summary(summary: AuditSummary) -> list[str]:
    """Return the findings in a few lines, the worst first."""
    lines = [
        f"{summary.slides:,} slides: {sum(summary.worst.values()):,} with findings ("
        + ", ".join(
            f"{count:,} at worst with {'an' if severity == 'error' else 'a'} {severity}"
            for severity, count in summary.worst.items()
        )
        + ")"
    ]
    for severity in summary.worst:
        lines += [
            f"  {severity:<8} {name:<26} {count.slides:>7,}   "
            + ", ".join(f"{provider} {slides:,}" for provider, slides in count.by_provider.items())
            for name, count in summary.findings.items()
            if count.severity == severity
        ]
    if (groups := summary.groups) is not None:
        lines.append(
            f"near-duplicates: {groups.slides:,} slides in {groups.groups:,} groups, "
            f"{groups.with_conflicting_grades:,} of them with different grades; the largest has {groups.largest}"
            if groups.groups
            else "near-duplicates: none"
        )
    return lines


def list_next_steps(summary: AuditSummary, out: Path) -> list[str]:
    """Return what to do next, as sentences and commands."""
    from panda.audit.tables import FINDINGS_TABLE, GROUPS  # noqa: PLC0415
    from panda.data.findings import REFUSED_ROWS  # noqa: PLC0415

    steps = []
    if refused := [name for name in summary.findings if name in REFUSED_ROWS]:
        steps.append(f"correct the table of slides first, training refuses it as it is: {', '.join(refused)}")
    typed = [shlex.quote(text) for text in list_overrides() if text.startswith("data")]
    given = " ".join(typed) or "data=panda data.root=…"
    if summary.groups is None:
        steps.append(
            "only the table was read, so there is no groups.csv: near-duplicates are found by their tissue. Inspect "
            f"the slides: {name_command('audit')} {given}"
        )
        return steps
    exclude = [
        name
        for name, count in summary.findings.items()
        if name in SPOILT_LABELS or (count.severity == "error" and name not in REFUSED_ROWS)
    ]
    filters = f" data.exclude=[{','.join(exclude)}]" if exclude else ""
    files = map(format_override, (f"data.findings={out / FINDINGS_TABLE}", f"data.groups={out / GROUPS}"))
    steps.append(f"{name_command('train')} {given} {' '.join(files)}{filters}")
    return steps
