"""Work of a cluster that needs no network, in a module that is imported fast.

`python -m tests.letters FOLDER ITEM …` does it with two workers of this machine, as an entry point does.
"""

from __future__ import annotations

import contextlib
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

    `fault` refuses the worker, and so does the variable LETTERS_FAULT in its environment. `deaths` is the number of
    workers that are killed while they load.
    """

    log: Path
    fault: str = ""
    deaths: int = 0

    def load(self) -> Letters:
        if fault := self.fault or os.environ.get("LETTERS_FAULT"):
            raise PandaError(fault)
        for number in range(self.deaths):
            with contextlib.suppress(FileExistsError):
                self.log.with_name(f"death-{number}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1 if self.deaths else 0)  # the others are still loading when one is killed
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
