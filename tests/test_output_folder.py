"""An output folder belongs to the command that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from panda.app.audit import AuditConfig
from panda.app.features_config import FeaturesConfig
from panda.app.inference_config import InferenceKeys
from panda.app.output_folder import OutputKeys, find_other_command
from panda.errors import ConfigError


@pytest.mark.parametrize(
    ("mark", "command", "what"),
    [
        ("checkpoints", "train", "a training run"),
        ("inference.json", "infer", "results of infer.py"),
        ("features.json", "features", "results of features.py"),
        ("audit.csv", "audit", "an audit"),
        ("audit.json", "audit", "an audit"),
    ],
)
def test_output_folder_of_another_command_is_refused(tmp_path: Path, mark: str, command: str, what: str) -> None:
    (tmp_path / mark).touch()
    for entry_point in ("infer", "features", "audit"):
        faults = list(find_other_command("output=x", tmp_path, entry_point))
        expected = [] if entry_point == command else [f"output=x is the folder of {what}: give a folder of its own"]
        assert faults == expected


@pytest.mark.parametrize("kind", [AuditConfig, FeaturesConfig, InferenceKeys])
def test_output_of_a_command_that_is_a_file_is_refused(tmp_path: Path, kind: type[OutputKeys]) -> None:
    (tmp_path / "out").touch()
    own = type("Own", (OutputKeys,), {"entry_point": kind.entry_point, "__module__": __name__})
    assert issubclass(kind, OutputKeys)
    with pytest.raises(ConfigError, match=r"output=.*out is a file; give a folder"):
        own(output="x", run_dir=str(tmp_path / "out"))
