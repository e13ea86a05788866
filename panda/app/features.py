"""Encode the tissue tiles of slides into feature files: the command is `python features.py`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from panda.app.build import Faults
from panda.app.collection import end_run
from panda.app.config_check import check_config
from panda.app.entry_point import close_logs, make_folder
from panda.app.feature_tables import FeatureTables
from panda.app.features_config import FeaturesConfig
from panda.app.slide_encoding import LoadedEncoding, SlideEncoding
from panda.app.slide_keys import hash_slides
from panda.app.slide_progress import SlideProgress
from panda.app.slide_work import begin_log, open_work, run_on_cluster
from panda.app.software import describe_making
from panda.errors import ConfigError, PandaError
from panda.inference.feature_output import FeatureRecord, read_summary

log = logging.getLogger(__name__)

_STAGE = "features"


@close_logs
def extract_features(cfg: DictConfig) -> None:
    """Encode every slide, continue after bad ones, and write tables and page.

    Slides that have their features are not opened, and without any other slide no encoder is loaded.

    Args:
        cfg: `conf/features.yaml` as Hydra composed it, with `run_dir`.

    Raises:
        ConfigError: If the configuration has faults. All are reported, before anything slow begins.
        SomeSlidesFailed: If any slide failed, after all others are done.
    """
    config = check(cfg)
    paths, output = config.slide_list.paths, config.feature_output
    if fault := output.find_fault():  # the check did not know weights that are downloaded
        raise ConfigError(fault)
    part, own_slides = config.own_shard, config.own_slides
    tables = FeatureTables(output, is_shard=part is not None)
    recorded, left = _divide(config, tables)
    work = open_work(config.cluster, SlideEncoding.from_config(config), output.path)
    with work if left else contextlib.nullcontext() as encoding:
        make_folder(output.path)
        begin_log(config, output.path, tables.command)
        if encoding is not None:
            log.info("%s", encoding.facts.engine)
        notes, device = _list_notes(config), encoding.facts.device if encoding else _find_device(config)
        for note in notes:
            log.warning("%s", note)
        making = describe_making()
        summary = output.summarize(device, notes, making)
        output.write_summary(summary)
        run = tables.write_run((path.stem for path in paths), summary)
        _add_recorded(recorded, tables)
        if len(left) < len(own_slides):
            log.info("%d of them have their features already", len(own_slides) - len(left))
        if encoding is not None:
            with SlideProgress(tables, len(left), _STAGE) as progress:
                if isinstance(encoding, LoadedEncoding):
                    new = _encode_here(encoding, left, progress)
                else:
                    new = run_on_cluster(encoding, left, progress)
            run = tables.write_run((path.stem for path in paths), output.summarize(device, [*notes, *new], making))
    end_run(tables, run, part, len(own_slides))


def check(cfg: DictConfig, faults: Faults | None = None) -> FeaturesConfig:
    """Check a configuration and the files that it names. Faults that were found before are raised with its own."""
    config: FeaturesConfig = check_config(cfg, "features", faults)
    return config


def _divide(config: FeaturesConfig, tables: FeatureTables) -> tuple[list[Path], list[Path]]:
    """Return the slides whose features are complete but not in the records of the folder, and those without features.

    Features are not in the records if an older version made them, or the slide failed since.
    """
    known = {"made_with": tables.made_with, "mpp_override": config.mpp_override}
    finished = tables.find_finished(hash_slides(config.own_slides, known))
    recorded, left = list[Path](), list[Path]()
    for path in config.own_slides:
        if path.stem not in finished:
            (recorded if tables.output.find_record(path, logging.WARNING) else left).append(path)
    return recorded, left


def _add_recorded(paths: Iterable[Path], tables: FeatureTables) -> None:
    """Add slides whose features are complete to the records of the folder."""
    for path in paths:
        if record := tables.output.find_record(path):
            tables.output.write_record(record)  # a failure counts for the record before
            tables.add(record)


def _encode_here(encoding: LoadedEncoding, paths: Sequence[Path], progress: SlideProgress) -> Iterable[str]:
    """Encode slides in this process, and return the notes of the encoder."""
    started, encoded = time.monotonic(), 0

    def add(path: Path, result: FeatureRecord | Exception) -> None:
        if isinstance(result, FeatureRecord):
            progress.add(result)
        else:
            progress.fail(path.stem, result)

    def count(tiles: int) -> None:
        nonlocal encoded
        encoded += tiles
        progress.show(f"{encoded:,} tiles, {encoded / (time.monotonic() - started):,.0f}/s")

    encoding.extract(paths, add, count)
    if encoded:
        seconds = time.monotonic() - started
        log.info("%d tiles in %.0f s, %.1f a second", encoded, seconds, encoded / seconds)
    return encoding.notes


def _list_notes(config: FeaturesConfig) -> list[str]:
    """Return what a reader of the features should know before any is made."""
    random = "The weights of the encoder are random, so its features know nothing of tissue."
    return [*config.encoder_network.notes, *([random] if config.encoder_weights is None else [])]


def _find_device(config: FeaturesConfig) -> str:
    """Return the device of the run before, if there is nothing to encode."""
    try:
        return read_summary(Path(config.run_dir)).device
    except (OSError, PandaError):
        return str(config.compute.torch_device)
