# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf.loader._libbpf: the part of libbpf that BCC cannot give us, flattened for Python.

cffi reads the declarations from libbpf_glue.h itself, without its lines that start with '#'.
setup.py runs this from the root of the source tree, and setuptools takes only paths relative to it.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_FOLDER = "dmm_ebpf/loader"
_HEADER = "libbpf_glue.h"
_text = (Path(__file__).resolve().parent / _HEADER).read_text(encoding="utf-8")

ffibuilder = FFI()
ffibuilder.cdef("\n".join(line for line in _text.splitlines() if not line.startswith("#")))
ffibuilder.set_source(
    "dmm_ebpf.loader._libbpf",
    f'#include "{_HEADER}"\n',
    sources=[f"{_FOLDER}/libbpf_glue.c"],
    depends=[f"{_FOLDER}/{_HEADER}"],
    include_dirs=[_FOLDER],
    define_macros=[("_GNU_SOURCE", None)],
    libraries=["bpf"],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2"],
    # One file name, however the module is built: an older build under another name would
    # be found first.
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
