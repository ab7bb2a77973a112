# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf.rd.policy._routetable: what is done for each of a million routes.

cffi reads the declarations from routetable.h itself, without its lines that start with '#'.
setup.py runs this from the root of the source tree, and setuptools takes only paths relative to it.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_FOLDER = "dmm_ebpf/rd/policy"
_HEADERS = ("routetable.h", "learnt.h", "routeemission.h")
_SOURCES = ("learnt.c", "routelines.c", "routeprefixes.c", "routeentries.c", "routenodes.c")
_text = (Path(__file__).resolve().parent / _HEADERS[0]).read_text(encoding="utf-8")

ffibuilder = FFI()
ffibuilder.cdef("\n".join(line for line in _text.splitlines() if not line.startswith("#")))
ffibuilder.set_source(
    "dmm_ebpf.rd.policy._routetable",
    f'#include "{_HEADERS[0]}"\n',
    sources=[f"{_FOLDER}/{source}" for source in _SOURCES],
    depends=[*(f"{_FOLDER}/{header}" for header in _HEADERS), "bpf/abi.h"],
    include_dirs=[_FOLDER],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2"],
    # One file name, however the module is built: an older build under another name would
    # be found first.
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
