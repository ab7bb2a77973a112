# SPDX-License-Identifier: Apache-2.0
"""The commands below tools/: asked for help they tell it and do nothing else, and no word
is passed over.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
COMMANDS = sorted(p.name for p in TOOLS.iterdir() if p.is_file() and os.access(p, os.X_OK))
WITHIN_S = 120


def run(
    command: str, *words: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, TOOLS / command, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WITHIN_S)


def test_there_are_commands() -> None:
    assert {"check", "demo", "test", "bench", "bootstrap", "wanlab", "kernelvm"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "option"),
    [*((name, "--help") for name in COMMANDS), ("demo", "-h"), ("bench", "-h")],
)
def test_help_does_nothing_else(command: str, option: str) -> None:
    """As nobody: what would install, compile or make namespaces could not."""
    prefix = (
        ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        if os.geteuid() == 0
        else ()
    )
    done = run(command, option, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 50
    assert not done.stdout.startswith(("bootstrap:", "== "))


# These tell of a missing right before they read their words.
RIGHTS_FIRST = {"bench", "compat", "soak", "wanlab"}


# What is no option of tools/test is pytest's.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.root if name in RIGHTS_FIRST else ())
        for name in COMMANDS
        if name != "test"
    ],
)
def test_an_unknown_option_is_refused(command: str) -> None:
    done = run(command, "--no-such")
    assert done.returncode == 2
    assert "--no-such" in done.stderr


@pytest.mark.parametrize(
    ("command", "takes"),
    [
        ("demo", "--cluster or nothing"),
        ("bootstrap", "--venv or nothing"),
        ("check", "one option of --help"),
    ],
)
def test_a_word_too_many_is_refused(command: str, takes: str) -> None:
    done = run(command, "quickly")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"{command}: cannot take this command line: it takes {takes}, and got quickly\n"
    )


def test_pre_commit_and_ci_call_commands_that_are_here() -> None:
    """No list of checks stands there a second time: each calls what a developer calls."""
    for file in (".pre-commit-config.yaml", ".github/workflows/ci.yml", ".ci/run"):
        called = re.findall(r"tools/(\w+)", (TOOLS.parent / file).read_text(encoding="utf-8"))
        assert called, file
        assert set(called) <= set(COMMANDS), file
