# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf.userstack._core: the TCP core, the I/O adapters and the engine, as
one cffi module.

Sources and headers are found beside this file; cffi reads the declarations from the headers
themselves, without their lines that start with '#'. setup.py runs this from the root of the source
tree, and setuptools takes only paths relative to it.
"""

from __future__ import annotations

import os
from pathlib import Path

import cffi

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent
_ROOT = _PACKAGE.parent
_HEADERS = (
    _PACKAGE / "hal/halerr.h",
    _HERE / "core/cc/cc.h",
    _HERE / "core/cc/cc_guard.h",
    _PACKAGE / "kit/ask.h",
    _PACKAGE / "kit/native.h",
    _HERE / "core/packet.h",
    _HERE / "core/api.h",
    _HERE / "core/guard/end_guard.h",
    _PACKAGE / "kit/endnative.h",
    _PACKAGE / "kit/endask.h",
    _PACKAGE / "hal/portcaps.h",
    _PACKAGE / "hal/afxdp.h",
    _PACKAGE / "hal/tap.h",
    _PACKAGE / "hal/tapnic.h",
    _PACKAGE / "hal/privileges.h",
    _PACKAGE / "hal/landlock.h",
    _PACKAGE / "hal/syscalls.h",
    _HERE / "engine.h",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# What cffi generates is not held to them; these stand in its file alone.
_PRAGMAS = "".join(
    f'#pragma GCC diagnostic ignored "-W{name}"\n'
    for name in ("unused-parameter", "sign-compare", "missing-field-initializers")
)


def sources() -> list[Path]:
    """Every C file of the module but the one that cffi generates."""
    return [
        *sorted((_HERE / "core").glob("*/*.c")),
        *sorted((_PACKAGE / "hal").glob("*.c")),
        *sorted((_PACKAGE / "kit").glob("[!_]*.c")),
        *sorted(_HERE.glob("[!_]*.c")),
    ]


def declarations() -> str:
    """What the headers declare, as cffi reads it."""
    lines = []
    for header in _HEADERS:
        lines += [
            x for x in header.read_text(encoding="utf-8").splitlines() if not x.startswith("#")
        ]
    return "\n".join(lines)


def _relative(path: Path) -> str:
    return os.path.relpath(path, _ROOT)


ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "dmm_ebpf.userstack._core",
    _PRAGMAS + "".join(f'#include "{header.relative_to(_PACKAGE)}"\n' for header in _HEADERS),
    sources=[_relative(path) for path in sources()],
    depends=[_relative(path) for path in [*sorted(_PACKAGE.glob("**/*.h")), _ROOT / "bpf/abi.h"]],
    include_dirs=[_relative(_PACKAGE)],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=c11", "-O2", *WARNINGS],
    libraries=["pthread", "seccomp"],
    # One file name, however the module is built: an older build under another name would
    # be found first.
    py_limited_api=False,
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    ffibuilder.compile(verbose=True)
