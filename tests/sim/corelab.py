# SPDX-License-Identifier: Apache-2.0
"""Builds the core's test programs (simulator, sanitizer build, fuzz target, bridge) and runs the simulator."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
CORE = HERE.parent.parent / "dmm_ebpf" / "userstack" / "core"
SIM = ("sim.c", "kern.c", "outsider.c", "wild.c", "path.c", "params.c")
WARN = ("-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CORE}")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
MS = 1_000_000
S = 1_000_000_000


@dataclass(frozen=True)
class Programs:
    """Paths of what was built."""

    sim: Path
    sim_asan: Path
    fuzz: Path
    bridge: Path
    scale: Path
    scale_asan: Path


def _compile(compiler: str, flags: tuple[str, ...], mains: tuple[str, ...], output: Path) -> Path:
    """Object by object would be quicker on many cores; on two, one compiler run per program is not slower."""
    sources = [str(HERE / name) for name in mains] + [str(path) for path in sorted(CORE.glob("*.c"))]
    done = subprocess.run(
        [compiler, *WARN, *flags, *sources, "-o", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


def build_plain(directory: Path) -> Path:
    """The simulator alone, as fast as it goes."""
    return _compile("gcc", ("-O2",), SIM, directory / "sim")


def build_sanitized(directory: Path) -> Path:
    """The simulator alone, with ASan and UBSan."""
    return _compile("clang", ("-O1", *SANITIZE), SIM, directory / "sim_asan")


def build(directory: Path) -> Programs:
    """Compile everything into directory."""
    jobs = (
        partial(build_plain, directory),
        partial(build_sanitized, directory),
        partial(
            _compile, "clang", ("-O1", "-fsanitize=fuzzer", *SANITIZE), ("fuzz_core.c",), directory / "fuzz"
        ),
        partial(_compile, "gcc", ("-O2",), ("tunbridge.c",), directory / "bridge"),
        partial(_compile, "gcc", ("-O2",), ("scale.c",), directory / "scale"),
        partial(_compile, "clang", ("-O1", *SANITIZE), ("scale.c",), directory / "scale_asan"),
    )
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return Programs(*pool.map(lambda job: job(), jobs))


def simulate(binary: Path, timeout_s: float = 60, **keys: float | str) -> dict[str, int]:
    """One run of the simulator; keys and results as sim.c says. Fails if an invariant broke."""
    arguments = [f"{name}={value}" for name, value in keys.items()]
    done = subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-500:]}\n{done.stderr[-4000:]}"
    return {name: int(value) for name, value in (line.split("=") for line in done.stdout.splitlines())}
