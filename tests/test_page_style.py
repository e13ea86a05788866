"""Colours of the pages, and the contents list made from their headings."""

import re
from pathlib import Path

import pytest
from markupsafe import Markup

from panda.report import page
from panda.report.axes import PALETTE
from panda.report.page import list_contents
from panda.report.sheet import SERIES

CSS = (Path(page.__file__).parent / "templates" / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S))
TEXT = ("ink", "soft", "brand", "eosin", "link", "bad", "warn-ink", "alarm-ink")
PAIRS = [
    *((text, surface) for text in TEXT for surface in ("paper", "wash", "warn", "alarm")),
    *((text, "chosen") for text in ("ink", "soft", "link")),
    ("ink", "shade"),  # a confusion matrix
]
MARKS = ("train", "validation", "test", *(f"series-{number}" for number in range(1, 9)))


def measure_contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, WCAG 2.2: 21 of black and white."""
    lights = []
    for colour in (one, other):
        shares = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def test_contrast_of_black_and_white_is_21() -> None:
    assert measure_contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("mode", [LIGHT, DARK], ids=["light", "dark"])
def test_style_text_has_contrast(mode: dict[str, str]) -> None:
    low = {pair: measure_contrast(mode[pair[0]], mode[pair[1]]) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


@pytest.mark.parametrize(("mode", "least"), [(LIGHT, 2.2), (DARK, 3)], ids=["light", "dark"])
def test_style_marks_of_charts_are_visible(mode: dict[str, str], least: float) -> None:
    assert min(measure_contrast(mode[name], mode["paper"]) for name in MARKS) >= least


def test_style_defines_each_variable_in_both_modes() -> None:
    assert LIGHT.keys() == DARK.keys()
    folder = Path(page.__file__).parent
    files = [*(folder / "templates").iterdir(), *folder.glob("*.py")]
    used = {name for file in files for name in re.findall(r"var\(--([a-z-]+(?:\d+)?)\)", file.read_text())}
    assert used - LIGHT.keys() == {"shape"}, "a colour that is not defined; shape is set by the viewer"
    assert [LIGHT[name[6:-1]] for name in PALETTE] == [*SERIES], "pictures and charts have the same colours"


def test_style_has_no_colour_outside_its_variables() -> None:
    rules = CSS[CSS.index("* { box-sizing") :]
    over_pictures = {"#00ffd0", "#777", "#ffffffe0", "#1c2030"}
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rules)) <= over_pictures
    for file in (Path(page.__file__).parent / "templates").glob("*.html"):
        assert not re.findall(r'[:"]#(?:[0-9a-f]{3}){1,2}\b', file.read_text()), file.name


def test_list_contents_gives_headings_distinct_ids() -> None:
    body = Markup('<h2>By µm/px</h2><h2 id="near">A &lt;b&gt;</h2><h3>no</h3><h2>By µm/px</h2>')
    new, contents = list_contents(body)
    assert contents == [("by-µm-px", "By µm/px"), ("near", "A &lt;b&gt;"), ("by-µm-px-2", "By µm/px")]
    assert '<h2 id="by-µm-px-2">By µm/px</h2>' in new
    assert "<h3>no</h3>" in new
