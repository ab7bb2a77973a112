# SPDX-License-Identifier: Apache-2.0
"""top: what it shows at 80 by 24 for keys typed by textual's pilot, fed by a source of ours."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from tui_lab import ScriptedSource, flow, snapshot

from dmm_ebpf.errors import DmmError
from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.stack import StackRow
from dmm_ebpf.tui.app import HelpScreen, TopApp
from dmm_ebpf.tui.flowtable import FlowTable
from dmm_ebpf.tui.model import ORDERS, Snapshot


def drive(
    source: ScriptedSource,
    script: Callable[[Pilot[None], TopApp], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> TopApp:
    """Run top with source on a screen of size; it looks once, and again only when
    script says so.
    """
    app = TopApp(source, interval_s=3600, **options)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: source.polled > 0 and "looking" not in title(app))
            await script(pilot, app)

    asyncio.run(run())
    return app


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Let the application work until condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await pilot.pause()


async def look_again(pilot: Pilot[None], app: TopApp, source: ScriptedSource) -> None:
    """One more look, shown."""
    polled = source.polled
    app.look()
    await until(pilot, lambda: source.polled > polled)
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def table(app: TopApp) -> list[str]:
    """The lines of the table that show something."""
    widget = app.screen_stack[0].query_one(FlowTable)
    lines = [widget.render_line(y).text for y in range(widget.size.height)]
    return [line for line in lines if line.strip()]


def title(app: TopApp) -> str:
    """The first line of the screen."""
    return str(app.screen_stack[0].query_one("#title", Static).content)


def text_of(app: TopApp, name: str) -> str:
    """What a part of the screen says."""
    return str(app.screen_stack[0].query_one(name, Static).content)


def apps(app: TopApp) -> list[str]:
    """The processes listed, in order."""
    return [line.split("/")[0].strip() for line in table(app)[1:]]


BUSY = (
    snapshot(10, *(flow(n) for n in range(1, 6))),
    snapshot(
        12,
        *(flow(n, bytes_sent=n * 1_000_000, bytes_received=(6 - n) * 500_000) for n in range(1, 6)),
    ),
)


def test_rates_totals_and_the_selected_flow() -> None:
    source = ScriptedSource(*BUSY)

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        assert re.search(r"app1/1001.* -    - 1.0ms", table(app)[1])
        await look_again(pilot, app, source)
        assert apps(app) == ["app5", "app4", "app3", "app2", "app1"]
        assert re.search(r"203\.0\.113\.5:443 .* 20M 2\.0M 5\.0ms    0 ESTAB", table(app)[1])
        assert "flows 5  out 60Mb/s  in 30Mb/s" in title(app)
        kernel, wan = text_of(app, "#stacks").splitlines()
        assert re.fullmatch(r"kernel +up +5 flows +out +60Mb/s +in +30Mb/s", kernel)
        assert re.fullmatch(r"wan +down +0 flows +out +0b/s +in +0b/s", wan)
        assert text_of(app, "#detail").splitlines() == [
            "192.0.2.1:40005 -> 203.0.113.5:443  sent 5.0M received 500K age 1m00s",
            "table shop  rule 1  cgroup /shop.slice",
            "route 203.0.113.0/24",
        ]

    app = drive(source, script)
    assert source.closed
    assert app.failure is None


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (200, 60)])
def test_every_line_fits_the_screen(size: tuple[int, int]) -> None:
    wide = flow(
        9,
        dst="2001:db8:1234:5678:9abc:def0:1234:5678",
        comm="a-long-process",
        route="2001:db8::/32 tcp 443",
        state="FIN_WAIT1",
        wanted="wan",
        stack="kernel",
    )
    rows = (wide, *(flow(n) for n in range(20, 80)))

    async def script(_pilot: Pilot[None], app: TopApp) -> None:
        widget = app.query_one(FlowTable)
        assert {widget.render_line(y).cell_length for y in range(widget.size.height)} == {size[0]}
        assert app.query_one("Footer").region.bottom == size[1]

    drive(ScriptedSource(snapshot(1, *rows)), script, size)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_what_is_cut_says_nothing_else(width: int) -> None:
    """Whole numbers or none, a fallback's mark, and one column for each cell."""
    taken = flow(
        7,
        comm="漢字-a-server",
        pid=4194304,
        stack="a-stack-with-a-long-name",
        wanted="wan",
        route="203.0.113.0/24",
        bytes_sent=12_345_678,
        bytes_received=987_654_321,
        age_s=12345.0,
    )

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        line = table(app)[1]
        assert "/4194304 " in line and "…! " in line
        widget = app.query_one(FlowTable)
        ends = [s.cell_length for s in (widget.render_line(0), widget.render_line(1))]
        assert ends == [width, width]
        whole = {
            "flows",
            "1",
            "out",
            "in",
            "0b/s",
            "-b/s",
            "kernel",
            "wan",
            "up",
            "down",
            "0",
            "-",
            "…",
        }
        for line in (title(app), *text_of(app, "#stacks").splitlines()):
            words = set(re.sub(r"instance .*|^dmm-ebpf top +[0-9:]{8}|^a-\S+", "", line).split())
            assert words <= whole, line
        detail = text_of(app, "#detail").splitlines()
        assert len(detail) == 3
        last = app.query_one("#detail", Static).render_line(2).text
        assert last.startswith("route 203.0.113.0/24"), "a line before it is wrapped"
        for figure in re.findall(r"(?:sent|received|age) (\S+)", detail[0]):
            assert figure in {"12M", "988M", "3h25m"}
        await pilot.resize_terminal(120, 24)
        assert title(app).endswith("instance default")

    source = ScriptedSource(snapshot(1, taken))
    drive(source, script, (width, 24))


def test_80_by_24_shows_all_that_is_asked_for() -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        titles = table(app)[0]
        for name in ("PROCESS", "PEER", "STACK", "ROUTE", "OUT▼", "IN", "SRTT", "RETR", "STATE"):
            assert name in titles.split()
        assert len(table(app)) >= 15
        await pilot.press("t")
        first = next(line for line in table(app) if line.startswith("app255"))
        assert "203.0.113.255:65535" in first
        assert "kernel!" in first
        svg = app.export_screenshot()
        assert "Quit" in svg

    rows = [flow(255, dport=65535, wanted="wan"), *(flow(n) for n in range(1, 40))]
    drive(ScriptedSource(snapshot(1, *rows)), script)


def test_sorting() -> None:
    source = ScriptedSource(*BUSY)
    ascending = ["app1", "app2", "app3", "app4", "app5"]

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await look_again(pilot, app, source)
        for key, order in (
            ("i", ascending),
            ("n", ascending),
            ("n", ascending[::-1]),
            ("t", ascending[::-1]),
            ("r", ascending),
            ("d", ascending),
            ("greater_than_sign", ascending),
            ("less_than_sign", ascending),
            ("o", ascending[::-1]),
        ):
            await pilot.press(key)
            assert apps(app) == order, key
        await pilot.click(FlowTable, offset=(2, 0))
        assert apps(app) == ascending
        assert table(app)[0].startswith("PROCESS▲")

    drive(source, script)


def test_filter() -> None:
    rows = [
        flow(1, comm="curl"),
        flow(2, comm="nginx", stack="wan"),
        flow(3, comm="curl", state="SYN_SENT"),
    ]

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press("slash", *"curl")
        assert apps(app) == ["curl", "curl"]
        assert "flows 2/3" in title(app)
        await pilot.press("space", *"state", "equals_sign", *"estab", "enter")
        assert apps(app) == ["curl"]
        assert "filter curl state=estab" in title(app)
        # Back in the table, letters are keys again.
        await pilot.press("n")
        assert table(app)[0].startswith("PROCESS▲")
        await pilot.press("escape")
        assert len(apps(app)) == 3
        await pilot.press("slash", *"stack", "equals_sign", "enter")
        assert "a term is a word or" in text_of(app, "#stacks")
        await pilot.press(*"wan", "enter")
        assert apps(app) == ["nginx"]
        assert "a term is" not in text_of(app, "#stacks")

    drive(ScriptedSource(snapshot(1, *rows)), script)


@pytest.mark.parametrize("key", ["p", "space"])
def test_pause(key: str) -> None:
    source = ScriptedSource(*BUSY)

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press(key)
        assert "PAUSED" in title(app)
        app.look()
        await pilot.pause()
        assert source.polled == 1
        await pilot.press("n", "n")
        assert apps(app)[0] == "app5"
        await pilot.press(key)
        await until(pilot, lambda: source.polled == 2)
        await pilot.app.workers.wait_for_complete()
        assert "PAUSED" not in title(app)

    drive(source, script)


def test_quit() -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)

    source = ScriptedSource(*BUSY)
    app = drive(source, script)
    assert app.return_code == 0
    assert source.closed


def test_help_covers_and_any_key_closes_it() -> None:
    source = ScriptedSource(*BUSY)

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        assert app.screen.query_one("VerticalScroll").max_scroll_y == 0
        await look_again(pilot, app, source)
        await pilot.press("x")
        assert not isinstance(app.screen, HelpScreen)
        assert "OUT▼" in table(app)[0]

    drive(source, script)


def test_keys_that_come_while_the_help_closes_do_no_harm() -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        for _ in range(3):
            await pilot.press("h", "x", "y", "z")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        screen = app.screen
        assert isinstance(screen, HelpScreen)
        screen.on_click()
        screen.on_click()
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))

    assert drive(ScriptedSource(snapshot(1, flow(1))), script).failure is None


@pytest.mark.parametrize("before", [[], ["slash", "a"], ["h"]])
def test_ctrl_c_quits_wherever_one_is(before: list[str]) -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press(*before)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.is_running or app._exit)

    app = drive(ScriptedSource(snapshot(1, flow(1))), script)
    assert app.failure is None


def test_what_comes_while_it_ends_draws_nothing() -> None:
    source = ScriptedSource(snapshot(1, *(flow(n) for n in range(1, 20))))

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        flows = app.query_one(FlowTable)
        await flows.remove()
        app.on_flow_table_moved()
        await look_again(pilot, app, source)

    drive(source, script)


def test_a_small_screen_shows_flows() -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        lines = table(app)
        assert lines[0].split() == ["PROCESS", "PEER", "STACK", "OUT▼"]
        assert sum("203.0.113." in line for line in lines) >= 5
        await pilot.resize_terminal(80, 24)
        assert "ROUTE" in table(app)[0]

    drive(ScriptedSource(snapshot(1, *(flow(n) for n in range(1, 20)))), script, (40, 10))


@pytest.mark.parametrize("columns", [80, 60, 40, 20])
def test_what_is_sorted_by_is_shown(columns: int) -> None:
    async def script(pilot: Pilot[None], app: TopApp) -> None:
        seen = set()
        for _ in ORDERS:
            marked = re.search(r"([A-Z]+)[▲▼]", table(app)[0])
            assert marked, table(app)[0]
            seen.add(marked[1])
            assert table(app)[1].startswith("app")
            await pilot.press("greater_than_sign")
        # The mark takes the place of a letter where a column has its least.
        assert len(seen) == len(ORDERS)

    rows = [flow(n, bytes_sent=1000 * n) for n in range(1, 9)]
    drive(ScriptedSource(snapshot(1, *rows)), script, (columns, 24))


def test_the_cursor_stays_on_its_flow() -> None:
    later = snapshot(14, *(flow(n, bytes_sent=(10 - n) * 10_000_000) for n in range(1, 6)))
    source = ScriptedSource(*BUSY, later)

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        widget = app.query_one(FlowTable)
        await look_again(pilot, app, source)
        await pilot.press("down")
        assert widget.selected is not None
        assert widget.selected.flow.cookie == 4
        await look_again(pilot, app, source)
        assert apps(app) == ["app1", "app2", "app3", "app4", "app5"]
        assert widget.selected.flow.cookie == 4
        assert "203.0.113.4" in text_of(app, "#detail")
        await pilot.press("home")
        assert widget.selected.flow.cookie == 1

    drive(source, script)


def test_the_cursor_stays_on_a_flow_that_has_no_socket_here() -> None:
    fields = {"kind": "forwarded", "cookie": 0, "pid": 0, "comm": "", "direction": "forward"}
    rows = [
        Flow.from_map({**flow(n).to_map(), **fields, "in_interface": f"lan{n}"})
        for n in range(1, 6)
    ]
    source = ScriptedSource(snapshot(1, *rows), snapshot(2, *reversed(rows)))

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        widget = app.query_one(FlowTable)
        await pilot.press("down", "down", "down")
        assert widget.selected is not None
        at = widget.selected.flow
        await look_again(pilot, app, source)
        assert widget.selected.flow == at
        assert any(f"by {at.in_interface}" in line for line in table(app))

    drive(source, script)


def test_moving_through_many_flows() -> None:
    rows = [flow(n, dst=f"10.0.{n // 250}.{n % 250}", comm=f"a{n:05}") for n in range(3000)]

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        widget = app.query_one(FlowTable)
        await pilot.press("n", "end")
        assert widget.selected is not None
        assert widget.selected.flow.cookie == 2999
        assert table(app)[-1].startswith("a02999")
        await pilot.press("pageup")
        in_view = widget.size.height - 1
        assert widget.selected.flow.cookie == 2999 - in_view
        await pilot.press("home", "pagedown", "down", "up")
        assert widget.selected.flow.cookie == in_view
        await pilot.resize_terminal(80, 14)
        assert any(line.startswith(f"a{in_view:05}") for line in table(app))

    drive(ScriptedSource(snapshot(1, *rows)), script)


def test_flows_that_end_under_the_cursor() -> None:
    source = ScriptedSource(BUSY[1], snapshot(14, flow(1)), snapshot(15))

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        widget = app.query_one(FlowTable)
        await pilot.press("end")
        await look_again(pilot, app, source)
        assert widget.selected is not None
        assert widget.selected.flow.cookie == 1
        await look_again(pilot, app, source)
        assert widget.selected is None
        assert text_of(app, "#detail") == ""
        await pilot.press("down", "end", "pageup")

    drive(source, script)


def test_what_cannot_be_asked_is_said() -> None:
    async def script(_pilot: Pilot[None], app: TopApp) -> None:
        assert "red: its Resource Director does not answer" in text_of(app, "#stacks")

    drive(ScriptedSource(snapshot(1, notes=["red: its Resource Director does not answer"])), script)

    async def nothing(_pilot: Pilot[None], app: TopApp) -> None:
        assert "no instance is attached" in text_of(app, "#stacks")

    drive(ScriptedSource(Snapshot(1, [], [], [])), nothing)


def test_more_stacks_than_lines() -> None:
    stacks = [StackRow("default", f"s{n}", n, "user", "up") for n in range(9)]

    async def script(_pilot: Pilot[None], app: TopApp) -> None:
        lines = text_of(app, "#stacks").splitlines()
        assert len(lines) == 5
        assert lines[-1] == "and 5 more stacks; dmm-ebpf stacks lists them"

    drive(ScriptedSource(snapshot(1, stacks=stacks)), script)


def test_a_failure_ends_top_and_is_handed_on() -> None:
    failure = DmmError("look", why="no")

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        app.look()
        await until(pilot, lambda: app.failure is not None)

    app = drive(ScriptedSource(snapshot(1), failure), script)
    assert app.failure is failure


def test_hostile_names_cannot_drive_the_terminal() -> None:
    evil = flow(
        1, comm="\x1b]0;x\x07[b]", route="[red]\x1b[2J", cgroup="[/b]\n", stack="\x1b", rule="\r"
    )

    async def script(_pilot: Pilot[None], app: TopApp) -> None:
        shown = "".join(table(app)) + text_of(app, "#detail") + text_of(app, "#stacks")
        assert not set(shown) & {"\x1b", "\x07", "\r"}
        assert "[b]" in table(app)[1]

    drive(ScriptedSource(snapshot(1, evil)), script)
