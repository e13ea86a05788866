"""Map slides with a checkpoint: `python infer.py checkpoint=… slides=DIR_OR_FILE_OR_GLOB_OR_CSV output=out/`."""

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import enter, guard, pause_collection
from panda.app.hydra_job import read_key


@hydra.main(version_base="1.3", config_path="conf", config_name="infer")
@guard
def main(cfg: DictConfig) -> None:
    """Run one job over all slides, or collect what jobs left."""
    with pause_collection():  # slow imports only once the command line is understood
        if read_key(cfg, "collect") is None:
            from panda.app.infer import infer as run  # noqa: PLC0415
        else:
            from panda.app.inference_collection import collect as run  # noqa: PLC0415

    run(cfg)


if __name__ == "__main__":
    enter(main)
