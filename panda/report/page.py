"""Render pages: each is one file that makes no request, with all text from the data escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from panda.choices import name_tool
from panda.errors import PandaError
from panda.files import write_whole
from panda.report.head import PageHead
from panda.report.table import format_value

_HEADING = re.compile(r'<h2(?: id="([^"]*)")?>(.*?)</h2>', re.DOTALL)

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


def list_contents(body: Markup) -> tuple[Markup, list[tuple[str, Markup]]]:
    """Give each second-level heading an id, and return the new body and the id and text of each heading."""
    found: list[tuple[str, Markup]] = []
    seen: Counter[str] = Counter()

    def add_id(heading: re.Match[str]) -> str:
        text = Markup(heading[2])
        name = heading[1] or re.sub(r"\W+", "-", text.striptags().lower()).strip("-")
        seen[name] += 1
        name += f"-{seen[name]}" * (seen[name] > 1)
        found.append((name, text))
        return f'<h2 id="{Markup.escape(name)}">{text}</h2>'

    return Markup(_HEADING.sub(add_id, body)), found


ENVIRONMENT.globals["list_contents"] = list_contents


def write_page(
    path: Path, template: str, scripts: Sequence[str] = ("page.js",), *, head: PageHead, **content: Any
) -> Path:
    """Render a page and write it whole or not at all.

    The content security policy of the page forbids every request and every script but its own.

    Args:
        path: The HTML file.
        template: Name of a template of this package, which extends `base.html`.
        scripts: Names of scripts of this package.
        head: What the page is about, above everything else.
        content: Variables of the template; text in them is escaped.

    Returns:
        `path`.
    """
    script = "\n".join(map(_read_source, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    html = ENVIRONMENT.get_template(template).render(
        script=script, style=_read_source("page.css"), script_hash=digest, head=head, **content
    )
    write_whole(path, html)
    return path


def require_folder(path: Path, what: str = "the folder of a run, an inference or a sweep") -> None:
    """Refuse a path that is no folder; `what` says what to give."""
    if not path.is_dir():
        raise PandaError(f"{path} is not a folder: give {what}")
