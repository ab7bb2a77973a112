# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzz target (fuzz_core.c) from seeds that reach open connections."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from lab.fuzz.steps import program
from lab.sim.corelab import Programs


def test_no_input_breaks_an_invariant(programs: Programs, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = random.Random(1)
    for number in range(200):
        (corpus / f"seed{number}").write_bytes(program(rng))
    done = subprocess.run(
        [
            programs.fuzz,
            "-max_total_time=8",
            "-max_len=2000",
            "-timeout=10",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
            corpus,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


# Inputs that broke an invariant once, by what was wrong then
FOUND = {
    "a reset that waited for the app's handshake, given up, was never sent": (
        "5000816031401360094052046009407ad49600af0c81336000b7fc0000b7b6"
    ),
}


def test_what_broke_once_holds(programs: Programs, tmp_path: Path) -> None:
    for number, program_hex in enumerate(FOUND.values()):
        (tmp_path / str(number)).write_bytes(bytes.fromhex(program_hex))
    done = subprocess.run(
        [programs.fuzz, *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
