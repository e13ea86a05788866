"""Map slides with a checkpoint: `python infer.py checkpoint=… slides=DIR_OR_FILE_OR_GLOB_OR_CSV output=out/`."""

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import enter, guard, pause_collection


@hydra.main(version_base="1.3", config_path="conf", config_name="infer")
@guard
def main(cfg: DictConfig) -> None:
    """Run one job over all slides."""
    with pause_collection():
        from panda.app.infer import infer  # noqa: PLC0415  (slow imports only once the command line is understood)

    infer(cfg)


if __name__ == "__main__":
    enter(main)
