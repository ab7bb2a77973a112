# SPDX-License-Identifier: Apache-2.0
"""Cells that this kernel cannot try, in an emulated machine with another one (tools/kernelvm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from compat.run import UNTRIED, Result
from dmm_ebpf.errors import DmmError

ROOT = Path(__file__).resolve().parents[1]
SLOWER = 10  # than this machine
LIMIT_S = 3600


def tried_there(results: list[Result], kernel: str) -> list[Result]:
    """results, in which what is untried here is what the guest's kernel makes of
    it. Raises DmmError.
    """
    cases = dict.fromkeys(f"{r.group}: {r.case}" for r in results if r.verdict == UNTRIED)
    if not cases:
        return results
    only = [word for case in cases for word in ("--only", case)]
    carriers = [
        word
        for carrier in dict.fromkeys(r.carrier for r in results)
        for word in ("--carrier", carrier)
    ]
    environment = [f"DMM_LAB_PATIENCE={SLOWER}", f"PYTHONPATH={ROOT}"]
    guest = [
        str(ROOT / "tools" / "kernelvm"),
        "--kernel",
        kernel,
        "--compiled",
        "--timeout",
        str(LIMIT_S),
        "--",
    ]
    command = [sys.executable, "-m", "compat", "--json", *only, *carriers]
    done = subprocess.run(
        [*guest, "env", *environment, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ,
    )
    try:
        there = {_place(r): r for r in (Result(**row) for row in json.loads(done.stdout))}
    except ValueError as error:
        raise DmmError(
            f"try cells under Linux {kernel}", why=f"the guest ended with {done.returncode}"
        ) from error
    return [
        replace(there[_place(r)], kernel=kernel)
        if r.verdict == UNTRIED and _place(r) in there
        else r
        for r in results
    ]


def _place(result: Result) -> tuple[str, ...]:
    return result.group, result.case, result.direction, result.family, result.carrier
