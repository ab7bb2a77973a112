# SPDX-License-Identifier: Apache-2.0
"""docs/develop/add-a-congestion-control.md, done as it says: what it tells to write is built
and carries bytes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lab.sim import corelab
from lab.sim.corelab import MS, S, simulate

PAGE = corelab.HERE.parents[1] / "docs/develop/add-a-congestion-control.md"


@pytest.fixture
def sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The simulator with the page's congestion control."""
    file, declared, listed, _ = re.findall(
        r"```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    core = tmp_path / "core"
    shutil.copytree(corelab.CORE, core)
    (core / "cc/cc_steady.c").write_text(file, encoding="utf-8")
    for name, old, new in (
        ("cc.h", "extern const struct cc_ops cc_wan;\n", declared),
        ("cc.c", "&cc_wan,\n", listed),
    ):
        text = (core / "cc" / name).read_text(encoding="utf-8")
        assert old in text
        (core / "cc" / name).write_text(text.replace(old, old + new), encoding="utf-8")
    flags = [f"-I{core}" if flag == f"-I{corelab.CORE}" else flag for flag in corelab.WARN]
    monkeypatch.setattr(corelab, "WARN", tuple(flags))
    monkeypatch.setattr(corelab, "CORE", core)
    (program,) = corelab.build(tmp_path, corelab.PLAIN)
    return program


def test_what_the_page_adds_carries_bytes(sim: Path) -> None:
    path = {"rate_Bps": 12_500_000, "delay_ns": 10 * MS, "queue_bytes": 125_000, "loss": 0.01}
    result = simulate(
        sim, cc="steady", up=2_000_000, down=100_000, check=1, limit_ns=600 * S, **path
    )
    assert (result["complete"], result["errors"], result["wrong"]) == (1, 0, 0)
    assert result["retransmits_a"] > 0
