"""The command of the viewer: its arguments, its messages and its end."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from panda.choices import name_tool
from panda.errors import PandaError
from panda.view.server import HOST, ViewServer, serve
from panda.view.slide_list import find_slides


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.view"),
        description="Show slides, their maps and labels at full resolution in the browser of this machine. "
        "Nothing is written, and no other machine can connect. Ctrl-C ends the viewer.",
    )
    parser.add_argument("folder", type=Path, help="output of infer.py, folder of a run, or slides: a folder or a file")
    parser.add_argument("--slides", type=Path, help="folder that holds the slides now, if they have moved")
    parser.add_argument("--labels", type=Path, help="folder in PANDA's layout, or CSV with path and mask or annotation")
    parser.add_argument("--provider", help="label map of slides whose table names no provider")
    parser.add_argument("--port", type=int, default=0, help="port of the address (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    asked = parser.parse_args(arguments)
    if not 0 <= asked.port < 65536:
        parser.error(f"--port {asked.port}: give 1 to 65535, or 0 for a free one")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the viewer until Ctrl-C; return 1 and say why if there is nothing to show."""
    asked = _parse(arguments)
    try:
        if asked.slides is not None and not asked.slides.is_dir():
            raise PandaError(f"--slides {asked.slides}: there is no such folder; give the folder that holds the slides")
        listed = find_slides(asked.folder, asked.labels, asked.provider)
    except (PandaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    try:
        server = ViewServer(listed, asked.slides, asked.port)
    except OSError as error:
        print(
            f"--port {asked.port}: {HOST}:{asked.port} cannot be used ({error.strerror}); leave --port out",
            file=sys.stderr,
        )
        return 1

    def announce() -> None:
        count = len(listed.slides)
        print(f"{count:,} slide{'s' * (count != 1)} of {asked.folder}: {server.address}  (Ctrl-C ends)", flush=True)
        if not asked.no_browser:  # some browsers of terminals block
            page = _write_redirect(Path(private), server.address)
            threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="panda-view-", ignore_cleanup_errors=True) as private:
        serve(server, announce)
    return 0


def _write_redirect(private: Path, address: str) -> Path:
    """Write a page that leads to the address, in a folder that no other user can read.

    All users of a machine see the command lines of all processes, so the browser must not get the key in its own.
    """
    page = private / "open.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><title>panda view</title>\n')
    return page
