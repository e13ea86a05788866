"""Work of a cluster that needs no network, in a module that is imported fast.

`python -m tests.letters FOLDER ITEM …` does it with two workers of this machine, as an entry point does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from panda.app.signals import stop_on_signals
from panda.errors import PandaError


@dataclass(frozen=True)
class Letters:
    """Work that doubles letters, kills its worker at `!`, fails at `?`, and waits for a number of seconds.

    `fault` refuses the worker.
    """

    log: Path
    fault: str = ""

    def load(self) -> Letters:
        if self.fault:
            raise PandaError(self.fault)
        return self

    @property
    def facts(self) -> str:
        return "letters"

    def __call__(self, item: str) -> str:
        with self.log.open("a") as file:
            print(item, os.getpid(), file=file)
        if item.startswith("!"):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "?":
            logging.getLogger("panda.test").warning("a question")
            raise KeyError("no letter")
        time.sleep(float(item) if item.isdecimal() else 0.1)
        return 2 * item


def _main(folder: Path, items: list[str]) -> None:
    from panda.app.cluster import LocalCluster
    from panda.app.cluster_map import open_cluster

    with (
        stop_on_signals(),
        open_cluster(LocalCluster(workers=2), Letters(folder / "log"), folder) as cluster,
    ):
        print(dict(cluster.map(items)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
