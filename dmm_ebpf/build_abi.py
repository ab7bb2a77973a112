# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf._abi: bpf/dmm.h and bpf/abi.h as a cffi module, so that no start has to parse it.

cffi reads the structs and enums from the headers' own text, and the C compiler checks that it read
them as C does. setup.py runs this from the root of the source tree, and setuptools takes only paths
relative to it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cffi import FFI

_HEADERS = ("bpf/dmm.h", "bpf/abi.h")
_TYPES = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef unsigned long long __u64;
typedef int8_t __s8; typedef int16_t __s16; typedef int32_t __s32; typedef long long __s64;
"""

_ROOT = Path(__file__).resolve().parents[1]
_text = "".join((_ROOT / header).read_text(encoding="utf-8") for header in _HEADERS)

ffibuilder = FFI()
ffibuilder.cdef(_TYPES + "\n".join(line for line in _text.splitlines() if not line.startswith("#")))
ffibuilder.cdef("static const char *const dmm_abi_digest;")
ffibuilder.set_source(
    "dmm_ebpf._abi",
    '#include "abi.h"\n'
    f'static const char *const dmm_abi_digest = "{hashlib.sha256(_text.encode()).hexdigest()}";\n',
    include_dirs=["bpf"],
    depends=list(_HEADERS),
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O1"],
    # One file name, however the module is built: an older build under another name would
    # be found first.
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
