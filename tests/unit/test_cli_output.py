# SPDX-License-Identifier: Apache-2.0
"""How a table makes do with the width it has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.cli import output

CELLS = st.text(alphabet=st.characters(categories=["L", "N", "P"]), max_size=30)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.lists(st.lists(CELLS, min_size=6, max_size=6), max_size=4),
    st.integers(1, 200),
)
def test_tables_keep_what_is_wanted_most(
    specs: list[tuple[int, bool, bool]], cells: list[list[str]], width: int
) -> None:
    columns = [
        output.Column(f"C{i}", lambda _row: "", right=right, rank=rank, flex=flex)
        for i, (rank, right, flex) in enumerate(specs)
    ]
    rows = [row[: len(columns)] for row in cells]
    widths, lines = output.layout(columns, rows, width)
    assert len(lines) == len(rows) + 1
    left_out = {column.rank for column, w in zip(columns, widths, strict=True) if not w}
    kept = {column.rank for column, w in zip(columns, widths, strict=True) if w}
    assert all(rank > max(kept, default=0) for rank in left_out)
    assert 0 not in left_out
    _widths, whole = output.layout(columns, rows, None)
    for row, line in zip(rows, whole[1:], strict=True):
        assert all(cell in line for cell in row)
