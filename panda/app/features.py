"""Encode the tissue tiles of slides into feature files: the command is `python features.py`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from panda.app.build import Faults
from panda.app.config_check import check_config
from panda.app.entry_point import SomeSlidesFailed, close_logs, log_to_file, make_folder
from panda.app.features_config import DOWNLOADED, FeaturesConfig
from panda.data.failures import record_failure
from panda.errors import ConfigError
from panda.inference.feature_extraction import FeatureExtractor
from panda.inference.feature_output import FeatureOutput, FeatureRecord
from panda.inference.feature_tables import FeatureTables
from panda.inference.features import TileEncoder
from panda.report.features_page import write_features_page

log = logging.getLogger(__name__)

_STAGE = "features"


@close_logs
def extract_features(cfg: DictConfig) -> list[FeatureRecord]:
    """Encode every slide, continue after bad ones, and write tables and page.

    Args:
        cfg: `conf/features.yaml` as Hydra composed it, with `run_dir`.

    Returns:
        The slides in `features.csv`: all of the folder. There are none for a shard, except for the last one.

    Raises:
        ConfigError: If the configuration has faults. All are reported, before anything slow begins.
        SomeSlidesFailed: If any slide failed, after all others are done.
    """
    config = check(cfg)
    paths, passed_over = config.slide_list
    network = config.build_network(config.encoder_weights) if config.encoder_weights in DOWNLOADED else config.network
    folder = FeatureOutput(Path(config.run_dir), config.describe(network), config.mpp_override)
    if fault := folder.find_fault():  # the check did not know weights that are downloaded
        raise ConfigError(fault)
    encoder = TileEncoder(network, config.compute)
    make_folder(folder.path)
    shard = config.own_shard
    log_to_file(folder.path / ("features.log" if shard is None else f"features-{shard.number}-of-{shard.count}.log"))
    log.info("slides=%s: %d slides%s", config.slides, len(paths), passed_over and f"; passed over: {passed_over}")
    if shard:
        log.info("shard %s: %d of them", shard, len(config.own_slides))
    plan = folder.settings.plan
    log.info(
        "%s on %s in %s: %d features of tiles of %d px at %s, batches of %d, %d read threads",
        config.encoder, encoder.device, config.compute.precision, encoder.feature_dim, plan.tile_size, plan.request,
        encoder.batch_size, config.engine.thread_count,
    )  # fmt: skip
    notes = list(network.notes)
    if config.encoder_weights is None:
        notes.append("The weights of the encoder are random, so its features know nothing of tissue.")
    for note in notes:
        log.warning("%s", note)
    folder.write_summary(str(encoder.device), notes)
    tables = FeatureTables(folder, is_shard=shard is not None)
    _encode(encoder, config, tables)
    if encoder.notes:
        folder.write_summary(str(encoder.device), [*notes, *encoder.notes])
    failed, count, records = len(tables.failed), len(config.own_slides), list[FeatureRecord]()
    if shard is None or tables.has_all(path.stem for path in paths):
        records = tables.write()
        log.info("features of %d slides: %s", len(records), folder.path)
        log.info("report: %s", write_features_page(folder.path))
        if shard:
            failed, count = len(tables.list_failures().keys() & {path.stem for path in paths}), len(paths)
    else:
        log.info("shard %s is done; the last one writes the tables, or this command without shard", shard)
    if failed:
        others = "; the others are done" if failed < count else ""
        raise SomeSlidesFailed(f"{failed} of {count} slides failed: see {folder.path / 'failures.csv'}{others}")
    return records


def check(cfg: DictConfig, faults: Faults | None = None) -> FeaturesConfig:
    """Check a configuration and the files that it names. Faults that were found before are raised with its own."""
    config: FeaturesConfig = check_config(cfg, "features", faults)
    return config


def _encode(encoder: TileEncoder, config: FeaturesConfig, tables: FeatureTables) -> None:
    """Encode the slides that have no features yet, under a progress bar."""
    paths, started = config.own_slides, time.monotonic()
    failures = tables.list_failures()
    found = {
        path: None if path.stem in failures else tables.folder.find_record(path, logging.WARNING) for path in paths
    }
    encoded = 0

    def add(path: Path, result: FeatureRecord | Exception) -> None:
        if isinstance(result, FeatureRecord):
            tables.add(result)
        else:
            tables.fail(record_failure(path.stem, _STAGE, result))
        bar.update()

    def count(tiles: int) -> None:
        nonlocal encoded
        encoded += tiles
        bar.set_postfix_str(f"{encoded:,} tiles, {encoded / (time.monotonic() - started):,.0f}/s")

    left = [path for path in paths if found[path] is None]
    if len(left) < len(paths):
        log.info("%d of them have their features already", len(paths) - len(left))
    done = len(paths) - len(left)
    bar: tqdm[Any] = tqdm(total=len(paths), initial=done, desc=_STAGE, unit="slide", dynamic_ncols=True)
    with bar:
        extractor = FeatureExtractor(encoder, tables.folder, config.slide_options, add, count, pictures=config.pictures)
        extractor.extract(left)
    if encoded:
        seconds = time.monotonic() - started
        log.info("%d tiles in %.0f s, %.1f a second", encoded, seconds, encoded / seconds)
