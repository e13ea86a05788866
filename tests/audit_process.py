"""`python -m tests.audit_process`: an audit that ends itself anywhere, or whose workers crash.

It counts what the audit does (finished slides, and files of its folder that it opens or renames) and ends itself by
SIGKILL before a given one. Its workers note which slides they inspect, and can be made to end at one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.audit import dataset, records
from panda.audit.slide_inspector import inspect_slide

ROOT, OUT, KILL_AT, LOOKED_AT, CRASH_AT, HOW = sys.argv[1:7] if len(sys.argv) == 7 else [""] * 6
NEVER = 10**9


def _look(row: Any, *arguments: Any, **options: Any) -> Any:
    """Note the slide, crash if asked to, and otherwise call `inspect_slide`."""
    with Path(LOOKED_AT).open("a") as file:
        file.write(f"{row.slide_id}\n")
    if row.slide_id == CRASH_AT and (HOW == "always" or not Path(f"{LOOKED_AT}.crashed").exists()):
        Path(f"{LOOKED_AT}.crashed").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return inspect_slide(row, *arguments, **options)


def _main() -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == int(KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name in {"open", "os.rename"} and OUT in str(arguments[0]):
            step()

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float = 1) -> bool | None:
            step()
            return super().update(n)  # type: ignore[no-any-return]

    setattr(dataset, "tqdm", Bar)  # noqa: B010
    sys.addaudithook(hook)
    dataset.audit_folder(ROOT, OUT, workers=2, progress=False)
    print(count)


if __name__ == "__mp_main__":
    setattr(records, "inspect_slide", _look)  # noqa: B010
if __name__ == "__main__":
    _main()
