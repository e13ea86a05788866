"""The command `panda`, and the package as it is installed."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import panda
from panda.app import commands
from panda.choices import name_tool

PACKAGE = Path(str(panda.__file__)).parent
REPOSITORY = PACKAGE.parent
POSIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
POSIX_NAMES = (
    *("O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "getloadavg", "killpg", "mkfifo", "posix_fallocate"),
    *("pread", "register_at_fork", "sched_getaffinity", "setsid", "statvfs", "sysconf", "uname", "wait3"),
    *("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
)
"""Names of `os` and `signal` that Windows or macOS lack."""


def read_project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["panda", *words])
    try:
        commands.main()
    except SystemExit as end:
        return end.code
    return 0


def test_panda_lists_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    said = capsys.readouterr().out
    for name in (*commands.JOBS, *commands.TOOLS):
        assert f"\n  {name} " in said
    assert run(monkeypatch, "trian") == "panda trian: there is no such command (did you mean train?)"
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.endswith(read_project()["project"]["version"] + "\n")


@pytest.mark.parametrize("name", commands.JOBS)
def test_script_and_command_run_the_same_job(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, name, "--cfg", "hydra", "--package", "hydra.job") == 0
    said = capsys.readouterr().out
    assert f"name: {name}\n" in said
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--cfg", "hydra", "--package", "hydra.job"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", commands.TOOLS)
def test_tool_gets_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, commands.TOOLS[name][0], raising=False)
    assert run(monkeypatch, name, "--help") == 0
    assert f"panda {name} " in capsys.readouterr().out
    assert name_tool(commands.TOOLS[name][0]) == f"python -m {commands.TOOLS[name][0]}"


def test_pyproject_names_every_package() -> None:
    named = read_project()["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(named) == found | {"panda.conf"}


def test_names_of_one_system_are_looked_up_before_use() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(rf"^\s*(import|from) ({'|'.join(POSIX_MODULES)})\b", text, re.MULTILINE), path
        for module, name in re.findall(rf"\b(os|signal)\.({'|'.join(POSIX_NAMES)})\b", text):
            assert f'hasattr({module}, "{name}")' in text, f"{path} uses {module}.{name}"
