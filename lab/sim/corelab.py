# SPDX-License-Identifier: Apache-2.0
"""Builds the core's test programs (simulator, sanitizer build, fuzz target, bridge) and
the core as a library, and runs the simulator.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).parent
CORE = HERE.parent.parent / "dmm_ebpf" / "userstack" / "core"
SIM = ("sim.c", "kern.c", "outsider.c", "wild.c", "path.c", "params.c", "trips.c", "window.c")
WARN = ("-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CORE}")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
MS = 1_000_000
S = 1_000_000_000


CACHE = HERE.parent.parent / "build" / "sim"
KEPT_S = 7 * 86400  # what no build has used for so long goes


@dataclass(frozen=True)
class Recipe:
    """A program made of the core and of mains, which are files of this folder. instead: files
    of the core (relay/core.c) and what takes their places. others: files of elsewhere.
    """

    name: str
    mains: tuple[str, ...]
    compiler: str
    flags: tuple[str, ...]
    instead: tuple[tuple[str, Path], ...] = ()
    others: tuple[Path, ...] = ()

    def sources(self) -> list[Path]:
        """Its C files."""
        instead = dict(self.instead)
        names = sorted(str(path.relative_to(CORE)) for path in CORE.glob("*/*.c"))
        core = [instead.get(name, CORE / name) for name in names]
        return [*core, *(HERE / name for name in self.mains), *self.others]


KIT = HERE.parent.parent / "dmm_ebpf" / "kit"
PLUGGED = (*SIM, "plugged.c")
CALLS = (KIT / "endnative.c", KIT / "caught.c")  # what plugged.c needs besides
NAMED = (
    "-D_GNU_SOURCE",
    "-Wl,--export-dynamic",
    "-Wno-unused-command-line-argument",
)  # what a transport calls is found by its name
PLAIN = Recipe("sim", SIM, "gcc", ("-O2",))
SANITIZED = Recipe("sim_asan", SIM, "clang", ("-O1", *SANITIZE))
LIBRARY = Recipe("core.so", (), "gcc", ("-O1", "-shared", "-fPIC"))
FUZZ = Recipe("fuzz", ("fuzz_core.c",), "clang", ("-O1", "-fsanitize=fuzzer", *SANITIZE))
BRIDGE = Recipe("bridge", ("tunbridge.c",), "gcc", ("-O2",))
SCALE = Recipe("scale", ("scale.c",), "gcc", ("-O2",))
SCALE_SANITIZED = Recipe("scale_asan", ("scale.c",), "clang", ("-O1", *SANITIZE))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _made_from(compiler: str, flags: tuple[str, ...]) -> str:
    """A digest of all that an object is made from but its own file: the compiler, its
    flags, every header.
    """
    seen = hashlib.sha256("\0".join((_run(compiler, "--version"), *WARN, *flags)).encode())
    for folder in (CORE, KIT, HERE.parent):
        for path in sorted((*folder.rglob("*.h"), *folder.rglob("*.def"))):
            seen.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()


def _object(source: Path, recipe: Recipe, made_from: str) -> Path:
    """A file's object, out of the cache if it is there."""
    digest = hashlib.sha256(
        f"{made_from} {source.parent.name}".encode() + source.read_bytes()
    ).hexdigest()
    output = CACHE / f"{source.stem}-{digest[:32]}.o"
    if not output.exists():
        with output.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests of several files run at once
            if not output.exists():
                _compile(source, recipe, output)
    output.touch()
    return output


def _compile(source: Path, recipe: Recipe, output: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        part = Path(name) / "part.o"
        _run(recipe.compiler, *WARN, *recipe.flags, "-c", source, "-o", part)
        part.rename(output)  # so that it is whole, whoever is stopped


def build(directory: Path, *recipes: Recipe) -> list[Path]:
    """Compiles and links programs into directory. An object is compiled once for all of them,
    and kept in build/sim.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for path in (*CACHE.glob("*.o"), *CACHE.glob("*.lock")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
    made_from = {recipe: _made_from(recipe.compiler, recipe.flags) for recipe in recipes}
    wanted = {
        (source, made_from[recipe]): recipe for recipe in recipes for source in recipe.sources()
    }
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        made = pool.map(lambda key: _object(key[0], wanted[key], key[1]), wanted)
        objects = dict(zip(wanted, made, strict=True))

    def link(recipe: Recipe) -> Path:
        output = directory / recipe.name
        parts = [objects[source, made_from[recipe]] for source in recipe.sources()]
        _run(recipe.compiler, *recipe.flags, *parts, "-o", output, "-lm")
        return output

    return [link(recipe) for recipe in recipes]


def build_library(directory: Path) -> tuple[Any, Any]:
    """The core alone, as a shared library; cffi's pair of (ffi, lib), of what api.h declares."""
    api = "".join((CORE / f"{name}.h").read_text(encoding="utf-8") for name in ("packet", "api"))
    ffi = cffi.FFI()
    ffi.cdef(re.sub(r"^#.*$", "", api, flags=re.MULTILINE))
    return ffi, ffi.dlopen(str(build(directory, LIBRARY)[0]))


class Programs:
    """Paths of programs, each built in directory when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def sim(self) -> Path:
        """The simulator, as fast as it goes."""
        return build(self.directory, PLAIN)[0]

    @cached_property
    def sim_asan(self) -> Path:
        """The simulator, with ASan and UBSan."""
        return build(self.directory, SANITIZED)[0]

    @cached_property
    def fuzz(self) -> Path:
        """libFuzzer over the core."""
        return build(self.directory, FUZZ)[0]

    @cached_property
    def bridge(self) -> Path:
        """The core between two TUN devices."""
        return build(self.directory, BRIDGE)[0]

    @cached_property
    def scale(self) -> Path:
        """Many connections."""
        return build(self.directory, SCALE)[0]

    @cached_property
    def scale_asan(self) -> Path:
        """The same, with ASan and UBSan."""
        return build(self.directory, SCALE_SANITIZED)[0]


def build_plain(directory: Path) -> Path:
    """The simulator alone, as fast as it goes."""
    return build(directory, PLAIN)[0]


def build_sanitized(directory: Path) -> Path:
    """The simulator alone, with ASan and UBSan."""
    return build(directory, SANITIZED)[0]


def simulate(binary: Path, timeout_s: float = 60, **keys: float | str) -> dict[str, int]:
    """One run of the simulator; keys and results as sim.c says. Fails if an invariant broke."""
    arguments = [f"{name}={value}" for name, value in keys.items()]
    done = subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, (
        f"{' '.join(arguments)}\n{done.stdout[-500:]}\n{done.stderr[-4000:]}"
    )
    return {
        name: int(value) for name, value in (line.split("=") for line in done.stdout.splitlines())
    }
