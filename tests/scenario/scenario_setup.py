# SPDX-License-Identifier: Apache-2.0
"""What a scenario's config lines say: of the path, of the ends, and of the core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scenario_core import CONFIG, INNER, OUTER
from scenario_grammar import LEGS, NS, Scenario, ScenarioError, duration_ns

START_NS = 100 * NS["s"]
SLACK_NS = 100 * NS["us"]
TIMED = {"keepalive", "time_wait"}


@dataclass
class Setup:
    """core: settings of struct dmm_core_config; slack: ns that a packet may be early or late; isns:
    initial sequence numbers of the ends beyond each leg.
    """

    family: int = 4
    mtu: int = 1500
    slack: int = SLACK_NS
    isns: dict[int, int] = field(default_factory=lambda: {INNER: 0x22220000, OUTER: 0x33330000})
    core: dict[str, Any] = field(default_factory=dict)

    @property
    def inner_mtu(self) -> int:
        """Of the application's kernel."""
        return int(self.core.get("inner_mtu", 1500))


def read(scenario: Scenario) -> Setup:
    """Of config. Raises ScenarioError."""
    setup = Setup()
    for key, value in scenario.config.items():
        if key == "family":
            setup.family = int(value)
        elif key == "mtu":
            setup.mtu = int(value)
        elif key == "slack":
            setup.slack = duration_ns(value)
        elif key in ("isn_inner", "isn_outer"):
            setup.isns[LEGS[key[4:]]] = int(value, 0) % 2**32
        elif key in CONFIG:
            value_of: Any = duration_ns(value) if key in TIMED else value
            setup.core[CONFIG[key]] = value.encode() if key == "congestion" else int(value_of)
        else:
            raise ScenarioError(scenario.path, 1, f"config has no {key}")
    return setup
