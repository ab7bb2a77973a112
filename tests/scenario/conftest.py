# SPDX-License-Identifier: Apache-2.0
"""Every tests/scenario/**/*.tcp is a test of its own, run against the core in virtual time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_grammar import ScenarioError, parse
from scenario_run import Run

from lab.sim.corelab import build_library

BUILT = pytest.StashKey[tuple[Any, Any]]()
DIRECTORY = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def built_core(config: pytest.Config) -> tuple[Any, Any]:
    """The core as a shared library, compiled once per run."""
    if BUILT not in config.stash:
        config.stash[DIRECTORY] = tempfile.TemporaryDirectory(prefix="scenario-core-")
        config.stash[BUILT] = build_library(Path(config.stash[DIRECTORY].name))
    return config.stash[BUILT]


@pytest.fixture(scope="session")
def core_library(pytestconfig: pytest.Config) -> tuple[Any, Any]:
    return built_core(pytestconfig)


class ScenarioItem(pytest.Item):
    """One scenario."""

    def runtest(self) -> None:
        Run(parse(self.path), built_core(self.config)).run()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was expected and what came, not the runner's own stack."""
        if isinstance(excinfo.value, ScenarioError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"scenario {self.name}"


class ScenarioFile(pytest.File):
    """A file holds one scenario."""

    def collect(self) -> Iterator[ScenarioItem]:
        yield ScenarioItem.from_parent(self, name=self.path.stem)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    if file_path.suffix == ".tcp":
        return ScenarioFile.from_parent(parent, path=file_path)
    return None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the compiled core."""
    if DIRECTORY in config.stash:
        config.stash[DIRECTORY].cleanup()
