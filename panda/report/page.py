"""Render pages: each is one file that makes no request, with all text from the data escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from panda.choices import name_tool
from panda.errors import PandaError
from panda.files import write_whole
from panda.report.table import format_value

ENVIRONMENT = Environment(
    loader=PackageLoader("panda.report", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["format_value"] = format_value
ENVIRONMENT.globals["name_tool"] = name_tool


def _read_source(name: str) -> str:
    loader = ENVIRONMENT.loader
    assert loader is not None
    return loader.get_source(ENVIRONMENT, name)[0]


def write_page(path: Path, template: str, scripts: Sequence[str] = ("page.js",), **content: Any) -> Path:
    """Render a page and write it whole or not at all.

    The content security policy of the page forbids every request and every script but its own.

    Args:
        path: The HTML file.
        template: Name of a template of this package.
        scripts: Names of scripts of this package.
        content: Variables of the template; text in them is escaped.

    Returns:
        `path`.
    """
    script = "\n".join(map(_read_source, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    html = ENVIRONMENT.get_template(template).render(
        script=script, style=_read_source("page.css"), script_hash=digest, **content
    )
    write_whole(path, html)
    return path


def require_folder(path: Path) -> None:
    """Refuse a path that is no folder."""
    if not path.is_dir():
        raise PandaError(f"{path} is not a folder: give the folder of a run, an inference or a sweep")
