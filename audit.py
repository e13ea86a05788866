"""Inspect a data set: `python audit.py data=panda data.root=… [audit.slides=false] [audit.output=audit]`."""

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import enter, guard, pause_collection


@hydra.main(version_base="1.3", config_path="conf", config_name="audit")
@guard
def main(cfg: DictConfig) -> None:
    """Run one audit."""
    with pause_collection():
        from panda.app.audit import audit  # noqa: PLC0415  (slow imports only once the command line is understood)

    audit(cfg)


if __name__ == "__main__":
    enter(main)
