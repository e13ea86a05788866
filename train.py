"""Train and evaluate: `python train.py [task=segmentation|grading] [model=…] [loss=…] [data=…] [key=value …]`."""

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import enter, guard, pause_collection


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@guard
def main(cfg: DictConfig) -> float | None:
    """Run one job; the figure it returns is what a sweep compares."""
    with pause_collection():
        from panda.app.train import train  # noqa: PLC0415  (slow imports only once the command line is understood)

    return train(cfg)


if __name__ == "__main__":
    enter(main, joint=True)
