"""Encode tiles into feature files: `python features.py encoder=uni2_h slides=DIR_OR_FILE_OR_GLOB_OR_CSV output=…`."""

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import enter, guard, pause_collection


@hydra.main(version_base="1.3", config_path="conf", config_name="features")
@guard
def main(cfg: DictConfig) -> None:
    """Run one job over all slides."""
    with pause_collection():
        from panda.app.features import extract_features  # noqa: PLC0415  (slow imports only once the command is understood)

    extract_features(cfg)


if __name__ == "__main__":
    enter(main)
