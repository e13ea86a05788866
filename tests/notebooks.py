"""Run the cells of a notebook in this process, without Jupyter; `python -m tests.notebooks` keeps their outputs."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell; return what it prints, and its last value if it is an expression, as a notebook shows them."""
    *first, last = ast.parse(source).body
    tree = ast.Module(first if isinstance(last, ast.Expr) else [*first, last], [])
    with contextlib.redirect_stdout(printed := io.StringIO()):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
            if value is not None:
                print(repr(value))
    return printed.getvalue()


def run_notebook(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]:
    """Run all cells in order in the working folder; return the names that they made, and each cell with its output."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return names, [(cell, run_cell("".join(cell["source"]), names)) for cell in code]


def main() -> None:
    """Write the outputs into the notebook."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _, made = run_notebook(NOTEBOOK)
    outputs = iter(text for _, text in made)
    for number, cell in enumerate([cell for cell in content["cells"] if cell["cell_type"] == "code"], 1):
        text = next(outputs)
        stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}
    NOTEBOOK.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
