# SPDX-License-Identifier: Apache-2.0
"""What calls plug-ins, with sanitizers: a worker that answers at random, and shared objects that do
what they must not.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.sim.cclab import CC, SANITIZE, build_plugins

FLOWS = 12
PLUGIN = """
#include "cc.h"
static void on_ack(struct cc *cc, const struct cc_sample *s)
{
	(void)s;
	if (++cc->priv[0] > 100) {
		STATEMENT;
	}
}
static const struct cc_ops ops = {.name = "bad", .on_ack = on_ack};
CC_EXPORT(ops);
"""


@pytest.fixture(scope="module")
def asan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugins(tmp_path_factory.mktemp("asan"), *SANITIZE)


@pytest.fixture(scope="module")
def tsan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugins(tmp_path_factory.mktemp("tsan"), "-g", "-fsanitize=thread")


def run(program: Path, argument: str) -> tuple[int, int, int, str]:
    """Faults, connections that went on without the plug-in, kB, the first fault."""
    done = subprocess.run(
        [program, argument], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    faults, fallen, kilobytes, first = done.stdout.rstrip("\n").split(" ", 3)
    return int(faults), int(fallen), int(kilobytes), first


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_that_answers_at_random(
    request: pytest.FixtureRequest, sanitizer: str, seed: int
) -> None:
    program = request.getfixturevalue(sanitizer)
    faults, fallen, kilobytes, first = run(program, str(seed))
    assert 0 < faults <= fallen <= FLOWS
    assert kilobytes > 10_000, "of 25 MB that the path carries in 20 s"
    assert first


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("*(volatile int *)8 = 1", "on_ack was ended by SIGSEGV"),
        ("__builtin_trap()", "on_ack was ended by SIG"),
        ("for (volatile int i = 0;; i++) ;", "on_ack did not return"),
        ("cc->cwnd_bytes = 0", "on_ack set cwnd_bytes to 0"),
        ("cc->spare_bytes = UINT64_MAX", "on_ack set spare_bytes to"),
        ("cc->mss = 0; cc->ops = 0; cc->pacing_Bps = 3", "on_ack set pacing_Bps to 3"),
    ],
)
def test_a_shared_object_that_fails(asan: Path, tmp_path: Path, statement: str, told: str) -> None:
    source, output = tmp_path / "bad.c", tmp_path / "bad.so"
    source.write_text(PLUGIN.replace("STATEMENT", statement), encoding="utf-8")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{CC}", "-o", output, source], check=True)
    faults, fallen, kilobytes, first = run(asan, str(output))
    assert 1 <= faults <= fallen == 2
    assert told in first
    assert kilobytes > 4_000
