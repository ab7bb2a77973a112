# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf.kit._sim: the simulator of congestion controls, with the built-in ones and
what calls plug-ins.

As build_core.py: cffi reads the declarations from the headers, without their lines that
start with '#'.
"""

from __future__ import annotations

import os
from pathlib import Path

import cffi

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent
_ROOT = _PACKAGE.parent
_CC = _PACKAGE / "userstack/core/cc"
_HEADERS = (
    _CC / "cc.h",
    _CC / "cc_guard.h",
    _HERE / "ask.h",
    _HERE / "native.h",
    _HERE / "sim/ccsim_run.h",
)


def _declarations() -> str:
    return "\n".join(
        line
        for header in _HEADERS
        for line in header.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )


def _relative(path: Path) -> str:
    return os.path.relpath(path, _ROOT)


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "dmm_ebpf.kit._sim",
    '#pragma GCC diagnostic ignored "-Wunused-parameter"\n'
    + "".join(f'#include "{header.relative_to(_PACKAGE)}"\n' for header in _HEADERS),
    sources=[
        _relative(path)
        for path in (
            *sorted(_CC.glob("*.c")),
            *sorted(_HERE.glob("[!_e]*.c")),  # end*.c are about transports
            *sorted(_HERE.glob("sim/*.c")),
        )
    ],
    depends=[_relative(path) for path in (*_CC.parent.glob("**/*.h"), *_HERE.glob("**/*.h"))],
    include_dirs=[_relative(_PACKAGE)],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"],
    libraries=["pthread"],
    py_limited_api=False,
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    ffibuilder.compile(verbose=True)
