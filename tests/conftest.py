# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test: hosts and links (`lab`, `site`, `gateway`), cgroups (`cgroup`), and
that nothing is left.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
pytest_plugins = ["labfixtures", "sitefixtures", "gatewayfixtures"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked root is no part of another user's tests: pytest tells how
    many are deselected.
    """
    if os.geteuid() == 0:
        return
    roots = [item for item in items if item.get_closest_marker("root")]
    items[:] = [item for item in items if not item.get_closest_marker("root")]
    if roots:
        config.hook.pytest_deselected(items=roots)
