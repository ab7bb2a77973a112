# SPDX-License-Identifier: Apache-2.0
"""How fast the erasure code is on this machine: what a repair symbol and a mended one cost."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from lab.fec import feclab

SYMBOL_BYTES = 1400
ROUNDS, TAKES = 20_000, 9
WINDOWS = (8, 32, 128)  # source symbols


def row_ns(lib: Any, way: int) -> float:
    """Median time of one row's product, ns; negative: this processor has no such way."""
    takes = [float(lib.glue_ns_per_row(way, SYMBOL_BYTES, ROUNDS)) for _ in range(TAKES)]
    return statistics.median(takes)


def main() -> None:
    """Prints a table."""
    with tempfile.TemporaryDirectory() as name:
        _, lib = feclab.build(Path(name))
        print(f"rows of {SYMBOL_BYTES} bytes, median of {TAKES} takes of {ROUNDS}")
        for way, word in enumerate(feclab.WAYS):
            ns = row_ns(lib, way)
            if ns < 0:
                print(f"  {word:9} not on this processor")
                continue
            costs = ", ".join(f"{n}: {ns * n / 1000:.1f} us" for n in WINDOWS)
            print(f"  {word:9} {SYMBOL_BYTES / ns:5.1f} GB/s; a repair symbol over {costs}")


if __name__ == "__main__":
    main()
