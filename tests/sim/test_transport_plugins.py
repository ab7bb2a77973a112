# SPDX-License-Identifier: Apache-2.0
"""A transport that is a shared object, in the simulator with sanitizers: go-back-N as the page
builds it carries every byte, and what one does that it must not ends its connections alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmm_ebpf.cli import plugins
from lab.sim import corelab
from lab.sim.corelab import CALLS, MS, NAMED, PLUGGED, S

GBN = corelab.HERE / "gbn/gbn.c"
ERRNO = 103  # ECONNABORTED
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    like = corelab.SANITIZED
    recipe = replace(like, name="plugged", mains=PLUGGED, flags=(*like.flags, *NAMED), others=CALLS)
    return corelab.build(tmp_path_factory.mktemp("plugged"), recipe)[0]


@pytest.fixture
def built(tmp_path: Path) -> Build:
    """Compiles gbn with some of its text replaced, as the page says."""

    def one(*changes: tuple[str, str]) -> Path:
        text = GBN.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        source, output = tmp_path / "gbn.c", tmp_path / "gbn.so"
        source.write_text(text, encoding="utf-8")
        folders = [f"-I{plugins.include()}/..", f"-I{GBN.parent}"]
        flags = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", *folders]
        subprocess.run(["cc", *flags, "-o", output, source], check=True)
        return output

    return one


def run(sim: Path, plugin: Path, **keys: float) -> tuple[dict[str, int], list[str]]:
    """What came of it; and faults, connections that ended by them, and the first in a sentence."""
    words = [f"{name}={value}" for name, value in keys.items()]
    done = subprocess.run(
        [sim, "delay_ns=5000000", f"limit_ns={600 * S}", *words],
        env=os.environ | {"SIM_TRANSPORT": str(plugin)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "ERROR: " not in done.stderr, done.stderr
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    figures = {k: int(v) for k, v in (line.split("=") for line in done.stdout.splitlines())}
    return figures, done.stderr.splitlines()[-1].split(" ", 2)


def test_go_back_n_carries_every_byte(sim: Path, built: Build) -> None:
    result, faults = run(
        sim, built(), up=300_000, down=200_000, conns=5, loss=0.02, reorder=0.02, dup=0.02
    )
    assert (result["complete"], result["wrong"], result["errors"]) == (5, 0, 0)
    assert (result["plain_a"], result["plain_b"]) == (0, 0)
    assert [result[f"{what}_a"] for what in ("left", "chunks")] == [0, 0]
    assert faults == ["0", "0", ""]


AT = "	if ((pkt->flags & TH_SYN) || !(pkt->flags & TH_ACK))\n		return;\n"
OUT = "	uint32_t n = 0;\n\n	if (g->held"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("*(volatile int *)8 = 1;", "input was ended by SIGSEGV"),
        ("__builtin_trap();", "input was ended by SIG"),
        ("for (volatile int i = 0;; i++) ;", "input did not return"),
        ("for (;;) end_ready(env, &g->end);", "input did not return"),
        ("g->phase = 77;", "input left a phase that there is not"),
        ("g->leg = 0;", "input changed what is not its to change"),
        ("g->snd_nxt = g->snd.tail + 9;", "input left positions that are none of the stream's"),
        ("g->snd_una = g->snd_nxt + 1;", "input left positions that are none of the stream's"),
    ],
    ids=["crashes", "traps", "loops", "loops-in-ours", "phase", "leg", "beyond", "backwards"],
)
def test_one_that_fails_ends_its_connections_alone(
    sim: Path, built: Build, statement: str, told: str
) -> None:
    plugin = built(
        (AT, f"{AT}	if (g->rcv_nxt > 20000 || g->snd_una > 20000) {{ {statement} }}\n")
    )
    result, (faults, fallen, first) = run(sim, plugin, up=500_000, down=0, conns=3)
    assert told in first
    assert int(faults) >= 1
    assert int(fallen) >= 3
    assert (result["wrong"], result["complete"]) == (0, 0)
    assert result["rst_out_a"] + result["rst_out_b"] >= 3, "both sides learn of it"
    assert [result[f"{what}_{side}"] for side in "ab" for what in ("left", "chunks")] == [0] * 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("if (g->sent > 9000) { memset(buf, 7, cap); return cap; }", "is not the connection's"),
        ("if (g->sent > 9000) return cap + 1;", "is longer than its room"),
    ],
    ids=["another's", "too-long"],
)
def test_a_packet_that_is_none_is_not_sent(sim: Path, built: Build, change: str, told: str) -> None:
    plugin = built((OUT, OUT.replace("\n\n", f"\n\n	{change}\n", 1)))
    result, (_, _, first) = run(sim, plugin, up=100_000, down=0)
    assert "output made a packet that" in first
    assert told in first
    assert result["error_a"]
    assert result["left_a"] == result["left_b"] == 0


def test_after_one_that_cannot_go_on_connections_are_of_tcp(sim: Path, built: Build) -> None:
    """The crash of one ends all that are open, and those to come carry their bytes."""
    plugin = built((AT, f"{AT}	if (g->snd_una > 20000)\n		__builtin_trap();\n"))
    result, (faults, _, _) = run(sim, plugin, up=100_000, down=0, conns=20, gap_ns=50 * MS)
    assert faults == "1"
    assert result["complete"] > 15
    assert result["plain_a"] >= result["complete"]
    assert result["left_a"] == result["left_b"] == 0


def test_a_timer_that_it_leaves_behind_frees_nothing_twice(sim: Path, built: Build) -> None:
    """It cancels no timer, and arms one after its connection is gone; ASan looks on."""
    cancel = "	if (deadline_ns == NEVER || end_ends(&g->end)->f.phase == CONN_DEAD)\n"
    result, _ = run(
        sim,
        built((cancel, "	if (deadline_ns == NEVER)\n		deadline_ns = 1;\n	if (0)\n")),
        up=50_000,
        down=50_000,
        conns=3,
        limit_ns=20 * S,
    )
    assert result["wrong"] == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("END_EXPORT(gbn);\n", "")], "exports no dmm_end_export"),
        ([("{END_ABI", "{END_ABI + 6")], "built for ABI 7 of end.h, and this is ABI 1"),
        ([("	.output = output,\n", "")], "it has no function output"),
        ([('.name = "gbn"', '.name = ""')], "it has no name"),
        ([("sizeof(struct gbn)", "8")], "its state_bytes are no struct end"),
        ([("	list_init(&e->ready);\n", "	no_such_function(e);\n")], "no_such_function"),
    ],
    ids=["nothing", "abi", "lacks", "nameless", "small", "symbol"],
)
def test_what_is_none_of_ours_is_refused_in_a_sentence(
    sim: Path, built: Build, changes: list[tuple[str, str]], told: str
) -> None:
    if changes[0][0].startswith("{END_ABI"):
        export = (
            "const struct end_export dmm_end_export = {END_ABI + 6, 0, END_EXPORT_SIZES, &gbn};"
        )
        changes = [("END_EXPORT(gbn);", export)]
    if "no_such_function" in told:
        changes.append(("struct gbn {\n", "void no_such_function(void *);\nstruct gbn {\n"))
    env = os.environ | {"SIM_TRANSPORT": str(built(*changes))}
    done = subprocess.run([sim], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
