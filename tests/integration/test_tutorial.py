"""The notebook and the lines of Python in the README do what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import panda
from panda.app.calls import compose_job
from panda.tables import read_output_table
from tests.integration.entry_points import REPOSITORY
from tests.notebooks import NOTEBOOK, run_cell, run_notebook


@pytest.mark.slow
def test_tutorial_and_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, made = run_notebook(NOTEBOOK)
    for cell, text in made:
        kept = "".join(line for output in cell["outputs"] for line in output["text"])
        assert kept.splitlines() == text.splitlines(), "run python -m tests.notebooks, if the change is wanted"
    assert NOTEBOOK.stat().st_size < 20_000
    run: Path = names["run"]
    found = names["found"]
    assert (run / "report.html").is_file()
    (row,) = read_output_table(tmp_path / "out" / "quantification.csv")
    assert float(row["tumor_mm2"]) == pytest.approx(found.tumor_mm2, abs=1e-6)
    assert row["isup_predicted"]

    (block,) = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(block.splitlines()) <= 10

    def use_run(*words: str) -> Path:
        compose_job("train", words)
        return run

    monkeypatch.setattr(panda, "train", use_run)
    said = run_cell(block.replace("/data/panda", str(names["root"])), {})
    assert said == f"{found.tumor_mm2:.2f} mm², {found.tumor_percent_of_tissue:.0f} % of the tissue\n"
    assert json.loads(NOTEBOOK.read_text())["nbformat"] == 4
