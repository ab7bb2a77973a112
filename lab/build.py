# SPDX-License-Identifier: Apache-2.0
"""Compiles the laboratory's C programs when their sources have changed; results are kept by content
hash. BPF programs for tests are compiled from a text.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from dmm_ebpf.errors import DmmError, KernelFeatureError

LAB_DIR = Path(__file__).resolve().parent
BUILD_DIR = Path(__file__).resolve().parents[1] / "build" / "lab"
FLAGS = ["-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]


def wanem_path() -> Path:
    """The link emulator's executable, built if need be."""
    return program_path("wanem")


def program_path(name: str) -> Path:
    """The executable of lab/NAME/*.c, built if need be. Two builders at once do not
    disturb each other.
    """
    compiler = (
        os.environ.get("CC")
        or shutil.which("cc")
        or shutil.which("gcc")
        or shutil.which("clang-14")
    )
    if compiler is None:
        raise KernelFeatureError(
            f"build {name}", why="no C compiler was found", hint="run tools/bootstrap"
        )
    files = sorted((*(LAB_DIR / name).glob("*.[ch]"), *LAB_DIR.glob("*.h")))
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    target = BUILD_DIR / f"{name}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    sources = [str(f) for f in files if f.suffix == ".c"]
    command = [compiler, *FLAGS, "-o", str(partial), *sources, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DmmError(f"build {name}", why=done.stderr.strip() or f"{compiler} failed")
    partial.rename(target)
    return target


def bpf_object(source: str, target: Path) -> Path:
    """C text of a BPF program, as others have them, compiled for tc(8) and ip(8) to load; gives
    target, its file.
    """
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", include, "-xc", "-c", "-", "-o", str(target)]
    subprocess.run(command, input=source, text=True, check=True)
    return target
