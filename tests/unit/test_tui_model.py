# SPDX-License-Identifier: Apache-2.0
"""What top computes: rates, totals, widths, units, filters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tui_lab import flow, snapshot

from dmm_ebpf.errors import UsageError
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import FlowFilter
from dmm_ebpf.tui import flowtable, model


def test_rates_need_two_looks_or_a_birth_between_them() -> None:
    meter = model.RateMeter()
    (first,) = meter.measure(snapshot(1, flow(1, bytes_sent=100)))
    assert (first.out_Bps, first.in_Bps) == (None, None)
    old, young = meter.measure(
        snapshot(
            3,
            flow(2, bytes_sent=100, age_s=50.0),
            flow(3, bytes_sent=100, bytes_received=50, age_s=1.0),
        )
    )
    assert old.out_Bps is None
    assert (young.out_Bps, young.in_Bps) == (50, 25)
    (back,) = meter.measure(snapshot(4, flow(3, bytes_sent=40, bytes_received=50)))
    assert (back.out_Bps, back.in_Bps) == (0, 0)


COUNTERS = st.dictionaries(
    st.integers(1, 50), st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), max_size=10
)


@given(
    st.lists(COUNTERS, min_size=1, max_size=4), st.sampled_from(list(model.ORDERS)), st.booleans()
)
def test_totals_are_the_sums_of_rows(
    looks: list[dict[int, tuple[int, int]]], column: str, reverse: bool
) -> None:
    meter = model.RateMeter()
    for at, counters in enumerate(looks):
        look = snapshot(
            float(at), *(flow(c, bytes_sent=s, bytes_received=r) for c, (s, r) in counters.items())
        )
        rows = meter.measure(look)
        totals = model.stack_totals(look, rows)
        assert sum(total.flows for total in totals) == len(rows)
        assert sum(t.out_Bps for t in totals) == pytest.approx(
            sum(row.out_Bps or 0 for row in rows)
        )
        assert all(row.out_Bps is None or row.out_Bps >= 0 for row in rows)
        arranged = model.arrange(rows, FlowFilter(), column, reverse=reverse)
        assert sorted(row.key for row in arranged) == sorted(row.key for row in rows)


@given(
    st.lists(st.integers(0, 60), min_size=9, max_size=9),
    st.integers(1, 250),
    st.sampled_from(list(model.ORDERS)),
)
def test_column_widths_use_the_room_and_no_more(
    natural: list[int], room: int, sorted_by: str
) -> None:
    """Neither the processes nor what is sorted by is ever left out."""
    widths = flowtable.column_widths(natural, room, sorted_by)
    least = [column.least for column in flowtable.COLUMNS]
    kept = [bool(w) for w in widths]
    assert all(w >= m or not w for w, m in zip(widths, least, strict=True))
    assert all(kept) or sum(least) + 8 > room
    shown = {one.title for one, k in zip(flowtable.COLUMNS, kept, strict=True) if k}
    assert shown >= {"PROCESS", sorted_by}
    assert sum(widths) + sum(kept) - 1 <= max(room, 26)
    assert all(w <= max(m, n) for w, m, n in zip(widths, least, natural, strict=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (units.quantity(0), "0"),
        (units.quantity(999), "999"),
        (units.quantity(999.6), "1.0K"),
        (units.quantity(1500), "1.5K"),
        (units.quantity(9960), "10K"),
        (units.quantity(999_600), "1.0M"),
        (units.quantity(1024, iec=True), "1.0Ki"),
        (units.quantity(None), "-"),
        (units.bit_rate(125_000), "1.0M"),
        (units.bit_rate(None), "-"),
        (units.duration_us(0), "-"),
        (units.duration_us(250), "250us"),
        (units.duration_us(999_999), "1.0s"),
        (units.duration_us(2_100_000), "2.1s"),
        (units.age(59.9), "59s"),
        (units.age(200), "3m20s"),
        (units.age(7500), "2h05m"),
        (units.age(4 * 86400 + 3 * 3600), "4d03h"),
        (units.endpoint("::", 80), "[::]:80"),
        (units.endpoint("0.0.0.0", 0), "*:*"),
        (units.endpoint("2001:db8::7", 443), "[2001:db8::7]:443"),
        (units.state("FIN_WAIT1"), "FIN-WAIT-1"),
        (units.shorten("abcdef", 4), "abc…"),
        (units.shorten_middle("abcdefgh", 5), "ab…gh"),
        (units.clean("a\x1bb\n"), "a?b?"),
        (units.clean(None), "-"),
    ],
)
def test_units(text: str, shown: str) -> None:
    assert text == shown


@given(st.floats(0, 1e18), st.booleans())
def test_quantities_are_short(value: float, iec: bool) -> None:
    assert len(units.quantity(value, iec=iec)) <= (6 if iec else 4)


@given(st.text(max_size=30), st.integers(0, 30))
def test_shortening_keeps_to_the_width(text: str, width: int) -> None:
    text = units.clean(text)
    for shorten in (
        units.shorten,
        units.shorten_middle,
        units.shorten_name,
        units.shorten_marked,
    ):
        shown = shorten(text, width)
        assert units.cells(shown) <= width
        assert shown == text or units.cells(text) > width


@pytest.mark.parametrize(
    ("text", "columns"),
    [("app", 3), ("漢字", 4), ("ｱ", 1), ("Ａ", 2), ("é", 1), ("e\u0301", 1), ("🦀", 2)],
)
def test_columns_are_those_of_the_terminal(text: str, columns: int) -> None:
    assert units.cells(text) == columns
    assert units.cells(units.pad(text, 9)) == 9
    assert units.pad(text, 9, right=True).endswith(text)


@pytest.mark.parametrize(
    ("shorten", "text", "width", "shown"),
    [
        (units.shorten_name, "a-long-process/4242", 10, "a-lo…/4242"),
        (units.shorten_name, "kworker/0:1/77", 10, "kworke…/77"),
        (units.shorten_name, "漢字漢字/4242", 10, "漢字…/4242"),
        (units.shorten_name, "app/4194304", 8, "app/419…"),
        (units.shorten_marked, "internet!", 7, "inter…!"),
        (units.shorten_middle, "203.0.113.0/24", 9, "203.…0/24"),
    ],
)
def test_what_tells_the_most_is_not_given_up(
    shorten: Callable[[str, int], str], text: str, width: int, shown: str
) -> None:
    assert shorten(text, width) == shown


@given(st.text(max_size=40))
def test_any_filter_line_is_a_filter_or_a_usage_error(line: str) -> None:
    try:
        chosen = FlowFilter.parse(line)
    except UsageError as error:
        assert "\n" not in error.why
        return
    assert chosen.matches(flow(1)) in (True, False)


@pytest.mark.parametrize(
    ("line", "matches"),
    [
        ("", True),
        ("APP1 203.0.113", True),
        ("app2", False),
        ("stack=kernel state=estab dst=203.0.113.0/24:443 pid=1001 comm=app?", True),
        ("stack=wan", False),
        ("dst=:80", False),
        ("dst=2001:db8::/32", False),
        ("state=time-wait", False),
    ],
)
def test_filter_lines(line: str, matches: bool) -> None:
    assert FlowFilter.parse(line).matches(flow(1)) is matches
