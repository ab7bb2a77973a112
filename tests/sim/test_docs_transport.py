# SPDX-License-Identifier: Apache-2.0
"""docs/develop/add-a-transport-in-c.md, done as it says: its code is that of lab/sim/gbn, and
carries bytes over any path, to itself and to TCP.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dmm_ebpf.cli import plugins
from dmm_ebpf.errors import DmmError
from dmm_ebpf.kit import probe
from dmm_ebpf.kit.names import CONGESTION, TRANSPORT
from lab.sim import corelab
from lab.sim.corelab import MS, Recipe, S, simulate

PAGE = corelab.HERE.parents[1] / "docs/develop/add-a-transport-in-c.md"
CODE = (corelab.HERE / "gbn/gbn.c").read_text(encoding="utf-8")
PATHS: dict[str, dict[str, float]] = {
    "clean": {},
    "loss": {"loss": 0.02},
    "all at once": {"loss": 0.02, "reorder": 0.02, "dup": 0.02, "corrupt": 0.01},
    "a short queue": {"rate_Bps": 1_250_000, "queue_bytes": 20_000},
    "IPv6": {"v6": 1, "loss": 0.01},
    "losses on the inner leg": {"loss": 0.01, "inner_loss": 0.02, "inner_reorder": 0.02},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator with the page's transport, with sanitizers."""
    directory = tmp_path_factory.mktemp("gbn")
    text = (corelab.CORE / "relay/transports.c").read_text(encoding="utf-8")
    include, entry = (block for block in blocks("text") if block.startswith(("#include", "&")))
    assert text.count("\t&tcp_outer,\n") == 1
    text = text.replace("\t&tcp_outer,\n", f"\t&tcp_outer,\n\t{entry}")
    listing = directory / "transports.c"
    # It lies elsewhere, so what it includes does, too.
    text = text.replace('"../', '"').replace('"core.h"', '"relay/core.h"')
    include = include.replace("../gbn/gbn.h", f"{corelab.HERE}/gbn/gbn.h")
    listing.write_text(text.replace("#include", f"{include}#include", 1), encoding="utf-8")
    like = corelab.SANITIZED
    recipe = Recipe(
        "gbn",
        (*like.mains, "gbn/gbn.c"),
        like.compiler,
        like.flags,
        (("relay/transports.c", listing),),
    )
    (program,) = corelab.build(directory, recipe)
    return program


def carries(sim: Path, **keys: Any) -> dict[str, int]:
    """A run in which every byte arrives, and nothing is left."""
    result = simulate(
        sim, timeout_s=180, transport="gbn", delay_ns=5 * MS, limit_ns=3600 * S, **keys
    )
    assert (result["errors"], result["wrong"]) == (0, 0)
    assert result["complete"] == keys.get("conns", 1)
    assert [result[f"{what}_a"] for what in ("left", "chunks")] == [0, 0]
    return result


def test_the_code_of_the_page_is_the_code() -> None:
    shown = blocks("c")
    assert len(shown) > 3
    assert [block for block in shown if block not in CODE] == []


def test_the_page_s_commands_build_and_try_what_can_be_loaded(tmp_path: Path) -> None:
    for file in ("gbn.c", "gbn.h"):
        shutil.copy(corelab.HERE / "gbn" / file, tmp_path / file)
    (build,) = re.findall(r"^cc .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    build = build.replace("$(dmm-ebpf stacks --include)", str(plugins.include()))
    subprocess.run(["sh", "-c", f"umask 022; {build} -Werror"], cwd=tmp_path, check=True)
    probe.check(f"c:{tmp_path}/gbn.so", TRANSPORT)
    (tried,) = re.findall(
        r"^\.venv/bin/python (-m .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    done = subprocess.run(
        [sys.executable, *tried.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(corelab.HERE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"complete=1", "wrong=0"} <= set(done.stdout.splitlines())
    assert done.stderr == "0 0 \n"
    with pytest.raises(DmmError, match="cannot use congestion control"):
        probe.check(f"c:{tmp_path}/gbn.so", CONGESTION)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_every_stream_arrives(sim: Path, name: str) -> None:
    carries(sim, up=300_000, down=200_000, conns=5, **PATHS[name])


def test_it_speaks_with_tcp(sim: Path) -> None:
    """The second host has no core: a kernel's TCP stands on the link."""
    for seed in range(1, 6):
        carries(sim, direct=1, seed=seed, up=200_000, down=200_000, loss=0.01)


def test_a_lost_byte_costs_the_window(sim: Path) -> None:
    """What the page says of it: without loss the window's rate, with loss a time-out each."""
    clean = carries(sim, up=5_000_000, down=0)
    lossy = carries(sim, up=5_000_000, down=0, loss=0.01)
    assert 5_000_000 / (clean["done_ns"] / S) == pytest.approx(65536 / 0.01, rel=0.15)
    assert lossy["done_ns"] > 5 * clean["done_ns"]
    assert lossy["rto_a"] > 20


def test_a_refusal_and_silence_are_told(sim: Path) -> None:
    refused = simulate(sim, transport="gbn", refuse=1, limit_ns=600 * S)
    silent = simulate(sim, transport="gbn", direct=1, mute=1, limit_ns=3600 * S)
    assert (refused["error_a"], silent["core_error_a"]) == (111, 110)
    assert (refused["left_a"], silent["left_a"]) == (0, 0)


def test_a_core_without_it_says_so(sim: Path) -> None:
    done = subprocess.run([sim, "transport=pigeon"], capture_output=True, check=False)
    assert done.returncode == 4


def test_each_connection_keeps_the_transport_that_it_was_made_with(sim: Path) -> None:
    """A core is given another one while connections are open: new ones have it, those go on."""
    result = carries(
        sim, transport_ns=100 * MS, conns=20, gap_ns=10 * MS, up=100_000, down=100_000, loss=0.01
    )
    assert 0 < result["plain_a"] < 20
    assert 0 < result["plain_b"] < 20


def test_one_that_is_put_away_wakes_as_what_it_was(sim: Path) -> None:
    """Connections of two sizes are parked: gbn's are never, and TCP's are whole after it."""
    result = carries(
        sim,
        transport_ns=100 * MS,
        conns=10,
        gap_ns=20 * MS,
        up=50_000,
        down=50_000,
        write_bytes=10_000,
        write_gap_ns=30 * S,
        echo=0,
    )
    assert 0 < result["plain_a"] < 10


def test_a_cookie_comes_back_to_the_transport_that_made_it(sim: Path) -> None:
    """It was sent before the core was given another one, which has none."""
    result = carries(sim, transport_ns=9 * MS, syn_cookies=1, up=50_000, down=50_000)
    assert (result["plain_a"], result["plain_b"]) == (1, 1)
    assert result["syn_cookies_valid_b"] == 1
