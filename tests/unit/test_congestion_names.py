# SPDX-License-Identifier: Apache-2.0
"""The congestion controls of user stacks: the core and the policy know the same ones."""

from __future__ import annotations

import re
from pathlib import Path

from dmm_ebpf.kit.names import CONTROLS

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "dmm_ebpf/userstack/core"


def test_a_policy_knows_the_congestion_controls_of_the_core() -> None:
    """cc_find() has those of its list alone, each under the name that its own file gives it."""
    listed = re.findall(r"&cc_(\w+)", (CORE / "cc.c").read_text(encoding="utf-8"))
    named = {
        symbol: name
        for file in CORE.glob("cc_*.c")
        for symbol, name in re.findall(
            r'const struct cc_ops cc_(\w+) = \{\s*\.name = "(\w+)"',
            file.read_text(encoding="utf-8"),
        )
    }
    assert sorted(named) == sorted(listed)
    assert sorted(named.values()) == sorted(CONTROLS)
