"""`wsi.geometry` alone rounds coordinates."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "panda"

COORDINATE = re.compile(
    r"[xyuv]|[xy][01s]|b[xy]|xy|left|top|right|bottom|centres?|corners?|coords?|locations?|origin|outline|points?|rings?|"
    r"(box|bbox|start|corner)_px0?|box(es)?|level0|(.*_)?downsamples?"
)
"""Names of coordinates, and of what turns one frame into another. Lengths and sizes are no coordinates."""

ROUNDING = {"round", "rint", "floor", "ceil", "trunc", "fix", "around"}

DRAWN = ("report/", "inference/legends.py")
"""Pages and legends: their coordinates are places on paper, of no slide."""

ALLOWED = {
    ("models/encoder_cards.py", "round((length - self.input_size) / 2)"): "crops as torchvision does, halves to even",
    ("synthetic/layout.py", "round((cv - core.centre) / height * 6)"): "names a corner of a lattice for a hash",
    ("synthetic/scene.py", "np.floor(u / period)"): "the cell of a noise function",
    ("wsi/geometry.py", "math.ceil(v - 1e-06)"): "ceil_px, which turns a length into a number of px",
    ("wsi/geometry.py", "math.floor(v + 0.5)"): "round_px for a number",
    ("wsi/geometry.py", "np.floor(np.asarray(v, dtype=np.float64) + 0.5)"): "round_px for an array",
    ("wsi/geometry.py", "np.floor(v)"): "floor_px, the px that holds a point",
    ("wsi/tissue.py", "np.ceil(y1.max())"): "the last row that a box touches, however little",
}
"""Expressions that round something with such a name, and why each may."""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _find_rounded(call: ast.Call) -> ast.expr | None:
    """Return what a call rounds to whole numbers, None if it does not round."""
    name, arguments = _name(call.func), call.args
    if name == "int" and arguments:  # int(v + 0.5)
        value = arguments[0]
        parts = (value.left, value.right) if isinstance(value, ast.BinOp) else ()
        half = any(isinstance(part, ast.Constant) and part.value == 0.5 for part in parts)
        return value if half else None
    if name not in ROUNDING:
        return None
    is_method = isinstance(call.func, ast.Attribute) and _name(call.func.value) not in ("np", "math", "torch")
    if len(arguments) + len(call.keywords) > (0 if is_method else 1):  # to decimals, not to px
        return None
    return call.func.value if is_method and isinstance(call.func, ast.Attribute) else arguments[0]


def _find_roundings(tree: ast.AST) -> Iterator[tuple[ast.Call, set[str]]]:
    """Yield each call that rounds, with the names in what it rounds and of the variables that it goes to."""
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.stmt):
            continue
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        parts = (node for target in targets if target is not None for node in ast.walk(target))
        own = {_name(node) for node in parts if isinstance(node, ast.expr)}
        inner = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr)]
        for call in (node for child in inner for node in ast.walk(child) if isinstance(node, ast.Call)):
            if (value := _find_rounded(call)) is not None:
                yield call, own | {_name(node) for node in ast.walk(value) if isinstance(node, ast.expr)}


def test_rounding_of_coordinates_is_in_geometry_only() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for call, names in _find_roundings(ast.parse(path.read_text(encoding="utf-8"))):
            if any(COORDINATE.fullmatch(name) for name in names) and not module.startswith(DRAWN):
                found[module, ast.unparse(call)] = call.lineno
    assert found.keys() == ALLOWED.keys(), found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("at = round(x * downsample)", True),
        ("corners = np.rint(grid / 2).astype(int)", True),
        ("left = int(a / b + 0.5)", True),
        ("f((ring.scale - 1).round())", True),
        ("level0 = np.floor(a)", True),
        ("corners = round_px(x * 2)", False),
        ("text = round(x * downsample, 3)", False),
        ("size = round(width * shrink)", False),
        ("left = int(a)", False),
    ],
)
def test_rounding_of_coordinate_is_detected(code: str, found: bool) -> None:
    names = {name for _, names in _find_roundings(ast.parse(code)) for name in names}
    assert any(COORDINATE.fullmatch(name) for name in names) == found
