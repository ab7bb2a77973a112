# SPDX-License-Identifier: Apache-2.0
"""What a scenario's config lines say: of the path, of the ends, and of the core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scenario_compare import PORT
from scenario_core import CONFIG, INNER, LINKS, OUTER, SYN, Core
from scenario_grammar import LEGS, NS, Scenario, ScenarioError, duration_ns
from scenario_packets import HOST, HOST_PORT, PEER, Tcp

START_NS = 100 * NS["s"]
SLACK_NS = 100 * NS["us"]
TIMED = {"keepalive", "time_wait"}


@dataclass
class Setup:
    """core: settings of struct dmm_core_config; slack: ns that a packet may be early or late; isns:
    initial sequence numbers of the ends beyond each leg; wrap: the core's, where it is told.
    """

    family: int = 4
    mtu: int = 1500
    slack: int = SLACK_NS
    isns: dict[int, int] = field(default_factory=lambda: {INNER: 0x22220000, OUTER: 0x33330000})
    wrap: int | None = None
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
        elif key == "core_isn":
            setup.wrap = int(value)
        elif key in ("isn_inner", "isn_outer"):
            setup.isns[LEGS[key[4:]]] = int(value, 0) % 2**32
        elif key in CONFIG:
            value_of: Any = duration_ns(value) if key in TIMED else value
            setup.core[CONFIG[key]] = value.encode() if key == "congestion" else int(value_of)
        else:
            raise ScenarioError(scenario.path, 1, f"config has no {key}")
    return setup


def start_ns(scenario: Scenario, setup: Setup, built: tuple[Any, Any]) -> int:
    """When the core's clock begins: at the time at which the outer leg's initial sequence number
    is config's core_isn (RFC 6528's clock), if it says one. Raises ScenarioError.
    """
    if setup.wrap is None:
        return START_NS

    def isn(now: int) -> int:
        core = Core(built, now, setup.core)
        syn = Tcp(HOST[setup.family], PEER[setup.family], HOST_PORT, PORT, 0, 0, SYN)
        core.put(INNER, syn.pack(), LINKS[INNER], setup.mtu)
        return int(core.get(OUTER).seq)

    at = START_NS
    step_ns = 10_000_000 * NS["us"] // ((isn(at + 10 * NS["s"]) - isn(at)) % 2**32 or 1)
    for _ in range(60):
        short = (setup.wrap - isn(at)) % 2**32
        if short < 2:
            return at
        at += max(short * step_ns * 9 // 10, step_ns)
    raise ScenarioError(scenario.path, 1, "no time gives this core_isn")
