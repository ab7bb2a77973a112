# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the command line's tests and of the core's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from cli_lab import Cli, Said
from corepackets import Core, built_core

import dmm_ebpf.rd.life
from dmm_ebpf.cli import main as cli_main
from dmm_ebpf.rd.api import client


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process, through the entry point."""

    def run(*args: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            cli_main.main(list(args))
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What attaches, in the place of the real one, which needs a kernel: the tests say
    what it does.
    """
    fake = SimpleNamespace(
        AttachOptions=SimpleNamespace,
        RunOptions=SimpleNamespace,
        instances=client.instances,
    )
    monkeypatch.setitem(sys.modules, "dmm_ebpf.rd.life.attaching", fake)
    monkeypatch.setattr(dmm_ebpf.rd.life, "attaching", fake, raising=False)
    return fake


@pytest.fixture(scope="module")
def make_core(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Core]:
    """Makes a core of the configuration that it is given."""
    return built_core(tmp_path_factory.mktemp("core"))
