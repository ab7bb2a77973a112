# SPDX-License-Identifier: Apache-2.0
"""The simulator with a transport of one's own:
`python -m lab.sim.pysim python:FILE:CLASS [KEY=VALUE...]`, or c:FILE for a shared object.

Prints what the simulator does, and as a last line, on stderr, how many faults the transport had,
how many connections ended by them, and the first one. The simulator is built as a library, and its
threads are those of a stack process: a class is asked and answers, so virtual time stands still
meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cffi

from dmm_ebpf.errors import DmmError
from dmm_ebpf.kit import bench, guarding
from dmm_ebpf.kit.names import TRANSPORT
from lab.sim import corelab

_HEADERS = (
    corelab.CORE / "guard/end_guard.h",
    corelab.KIT / "endask.h",
    corelab.KIT / "endnative.h",
)
_KIT = ("endask.c", "endanswer.c", "endasked.c", "turns.c", "endnative.c", "caught.c")


def library(directory: Path) -> Path:
    """Builds it."""
    recipe = replace(
        corelab.PLAIN,
        name="sim.so",
        flags=("-O2", "-fPIC", "-shared", "-D_GNU_SOURCE"),
        others=tuple(corelab.KIT / name for name in _KIT),
    )
    return corelab.build(directory, recipe)[0]


def opened(path: Path) -> tuple[Any, Any]:
    """ffi and lib of a library that was built."""
    ffi = cffi.FFI()
    lines = [line for file in _HEADERS for line in file.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("#"))
    ffi.cdef(
        text + "\nextern const struct end_ops *sim_transport; int main(int argc, char **argv);"
    )
    return ffi, ffi.dlopen(str(path))


def run(text: str, words: list[str], path: Path) -> int:
    """One run with the plug-in of that name, whose file may be relative to where we are. Raises
    DmmError for what is no transport.
    """
    ffi, lib = opened(path)
    plugin = guarding.guarded(bench.named(text, TRANSPORT), ffi, lib, trusted_only=False)
    plugin.start()
    lib.sim_transport = plugin.ops
    kept = [ffi.new("char[]", word.encode()) for word in ["sim", *words]]
    code = int(lib.main(len(kept), ffi.new("char *[]", kept)))
    plugin.close()
    print(*plugin.faults(), file=sys.stderr)
    return code


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as name:
        try:
            return run(sys.argv[1], sys.argv[2:], library(Path(name)))
        except DmmError as error:
            print(error, file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
