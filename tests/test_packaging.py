"""What a newcomer relies on: the pins are plain, the units are valid, the README's commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-py310.txt"])
def test_constraints__plain_pins(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) > 100
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line) for line in lines)


def test_systemd_units__verify() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = [str(path) for path in (ROOT / "deploy").iterdir() if path.suffix in (".service", ".timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_readme__every_command_and_file_exists() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^    edge ([a-z]+)", text, re.MULTILINE))
    assert {"split", "pool", "pretrain", "finetune", "evaluate", "run", "refresh", "bench"} <= commands
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, command
        used = set(re.findall(r"--[a-z-]+", "\n".join(line for line in text.splitlines() if f"edge {command} " in line)))
        assert used <= set(re.findall(r"--[a-z-]+", done.stdout)), command
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_version__changelog_names_it() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_repository__holds_no_registry_host_and_no_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile("https?://(files|registry|pypi|deb)\\.|(?<![\\w.])/(work|farm)/")
    for name in listed.stdout.splitlines():
        path = Path(ROOT / name)
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".json", ".service", ".timer", "") and path.is_file():
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{name}: {found}"
