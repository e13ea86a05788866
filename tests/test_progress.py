"""The progress of a long step, without a terminal."""

from __future__ import annotations

import pytest

from panda.progress import Progress


def test_progress_without_terminal_is_lines_in_log(
    panda_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 30.0, 61.0, 61.0, 90.0, 130.0, 130.0])
    monkeypatch.setattr("panda.progress.time.monotonic", lambda: next(times))
    with panda_log.at_level("INFO"):
        assert list(Progress("abcd", "maps", 4)) == list("abcd")
    assert panda_log.messages == ["maps: 2 of 4 slides", "maps: 4 of 4 slides"]
    assert "%" not in capsys.readouterr().err


def test_progress_hidden_says_nothing(panda_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.progress.LINE_SECONDS", 0.0)
    with panda_log.at_level("INFO"), Progress(total=2, stage="maps", hidden=True) as bar:
        bar.update()
        bar.set_postfix_str("tiles")
    assert not panda_log.messages
    with panda_log.at_level("INFO"), Progress(total=2, stage="maps", initial=1, unit="tile") as bar:
        bar.update()
    assert panda_log.messages == ["maps: 2 of 2 tiles"]
