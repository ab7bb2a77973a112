# SPDX-License-Identifier: Apache-2.0
"""top: a filter is held against what there is."""

from __future__ import annotations

from test_tui import ScriptedSource, apps, drive, flow, snapshot, table, text_of, title, until
from textual.pilot import Pilot

from dmm_ebpf.errors import UsageError
from dmm_ebpf.show.flowfilter import FlowFilter
from dmm_ebpf.tui.app import TopApp


def test_a_filter_by_what_is_not_there_is_told() -> None:
    def check(wanted: FlowFilter) -> None:
        if "wann" in wanted.stack:
            raise UsageError("filter by the stack 'wann'", why="there is none")

    async def script(pilot: Pilot[None], app: TopApp) -> None:
        await pilot.press("slash", *"stack", "equals_sign", *"wann", "enter")
        await until(pilot, lambda: "stack 'wann': there is none" in text_of(app, "#stacks"))
        await pilot.press("backspace", "enter")
        await until(pilot, lambda: table(app)[0].startswith("PROCESS") and not app.query(".open"))
        assert apps(app) == ["app2"]
        assert "filter stack=wan" in title(app)

    rows = (flow(1), flow(2, stack="wan"))
    drive(ScriptedSource(snapshot(1, *rows)), script, check=check)
