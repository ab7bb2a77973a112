# SPDX-License-Identifier: Apache-2.0
"""Builds core/fec as a shared library, and wraps it: source symbols are a list, of which some
are missing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "dmm_ebpf" / "userstack" / "core"
SOURCES = (*sorted((CORE / "fec").glob("*.c")), HERE / "glue.c")
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CORE}")
WAYS = ("portable", "ssse3", "avx2")  # enum gf256_way
KEPT, USELESS, REFUSED, CONTRADICTS = range(4)  # enum fec_result
WINDOW, UNKNOWN = 255, 64
_DECLARED = """
struct fec_decoder;
struct fec_table { const uint8_t *bytes; const uint8_t *there; uint64_t n; uint32_t symbol_bytes; };
uint8_t gf256_mul(uint8_t a, uint8_t b);
uint8_t gf256_inverse(uint8_t a);
void gf256_add_product_by(int way, uint8_t *to, const uint8_t *from, uint8_t c, size_t bytes);
bool gf256_can(int way);
uint8_t fec_coefficient(uint32_t seed, uint64_t index);
struct fec_decoder *glue_new(uint32_t symbol_bytes);
void glue_free(struct fec_decoder *d);
int glue_encode(uint8_t *out, struct fec_table *t, uint64_t first, uint32_t n, uint32_t seed);
int glue_repair(struct fec_decoder *d, struct fec_table *t, uint64_t first, uint32_t n,
                uint32_t seed, const uint8_t *repair);
int fec_arrived(struct fec_decoder *d, uint64_t index, const uint8_t *symbol);
const uint8_t *fec_solved(const struct fec_decoder *d, uint64_t *index);
const uint8_t *fec_solved_at(const struct fec_decoder *d, uint64_t index);
void fec_forget(struct fec_decoder *d, uint64_t below);
double glue_ns_per_row(int way, uint32_t bytes, uint32_t rounds);
"""


def build(directory: Path) -> tuple[Any, Any]:
    """Compiles the library into directory; cffi's pair of (ffi, lib)."""
    library = directory / "fec.so"
    command = ["gcc", *FLAGS, "-shared", "-fPIC", *map(str, SOURCES), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ffi = cffi.FFI()
    ffi.cdef(_DECLARED)
    return ffi, ffi.dlopen(str(library))


class Code:
    """A stream of source symbols, all of one length, and a decoder that has some of them."""

    def __init__(self, built: tuple[Any, Any], symbols: list[bytes]) -> None:
        self.ffi, self.lib = built
        self.size = len(symbols[0])
        self.symbols = symbols
        self._bytes = self.ffi.from_buffer(bytearray(b"".join(symbols)))
        self._all = self.ffi.new("uint8_t[]", [1] * len(symbols))
        self.there = self.ffi.new("uint8_t[]", [1] * len(symbols))
        self.decoder = self.ffi.gc(self.lib.glue_new(self.size), self.lib.glue_free)

    def _table(self, there: Any) -> Any:
        table = self.ffi.new("struct fec_table *")
        table.bytes, table.there = self.ffi.cast("uint8_t *", self._bytes), there
        table.n, table.symbol_bytes = len(self.symbols), self.size
        return table

    def encode(self, first: int, n: int, seed: int) -> bytes | None:
        """The repair symbol of a window; None: it is refused."""
        out = self.ffi.new("uint8_t[]", self.size)
        done = self.lib.glue_encode(out, self._table(self._all), first, n, seed)
        return bytes(self.ffi.buffer(out)) if done else None

    def repair(self, first: int, n: int, seed: int, repair: bytes) -> int:
        """Gives the decoder a repair symbol: enum fec_result."""
        table = self._table(self.there)
        return int(self.lib.glue_repair(self.decoder, table, first, n, seed, repair))

    def arrived(self, index: int, symbol: bytes | None = None) -> int:
        """A source symbol came, with these bytes instead of its own if they are given."""
        self.there[index] = 1
        return int(self.lib.fec_arrived(self.decoder, index, symbol or self.symbols[index]))

    def forget(self, below: int) -> None:
        """Symbols below are not wanted any more."""
        self.lib.fec_forget(self.decoder, below)

    def solved(self) -> dict[int, bytes]:
        """What the decoder has found since it was asked last."""
        out: dict[int, bytes] = {}
        index = self.ffi.new("uint64_t *")
        while (found := self.lib.fec_solved(self.decoder, index)) != self.ffi.NULL:
            out[index[0]] = bytes(self.ffi.buffer(found, self.size))
            self.arrived(index[0], out[index[0]])
        return out
