# SPDX-License-Identifier: Apache-2.0
"""What an administrator looks at, and real programs."""

from __future__ import annotations

import re
from typing import Any

from compat.case import DIRECTIONS, OWN, Case
from compat.cell import Cell, amount, settled
from compat.site import Untried
from compat.watch import devices, ss
from lab.hosts import kill_group
from lab.waiting import wait_for

GROUP = "listings"


def _tcpdump(cell: Cell) -> None:
    """tcpdump on the device, whose lines go to a file; short frames, so that none is lost for
    want of room.
    """
    said = cell.site.scratch / f"tcpdump-{cell.port}"
    options = ["-l", "-n", "-s", "128", "-B", "8192", "--immediate-mode", "-i", cell.site.device]
    try:
        with said.open("w") as out:
            process = cell.host.popen(
                ["tcpdump", *options, f"tcp port {cell.port}"], stdout=out, stderr=out
            )
    except FileNotFoundError as error:
        raise Untried("there is no tcpdump") from error
    cell.stack.callback(kill_group, process)
    wait_for(lambda: "listening on" in said.read_text(), 5, "tcpdump")
    cell.scratch["tcpdump"] = said


def tcpdump(cell: Cell, got: dict[str, Any]) -> list[str]:
    """SYNs and payload that tcpdump has seen on the device, each way; it has seen all once it
    has seen both FINs.
    """
    text = settled(cell, cell.scratch["tcpdump"].read_text, lambda text: text.count("[F") >= 2)
    seen: dict[str, list[int]] = {"to": [0, 0], "from": [0, 0]}
    for line in text.splitlines():
        found = re.search(r"IP6? \S+\.(\d+) > \S+: Flags \[([^\]]+)\].*length (\d+)", line)
        if not found:
            continue
        way = "from" if int(found[1]) == cell.port else "to"
        seen[way][0] += "S" in found[2]
        seen[way][1] += int(found[3])
    return [
        f"{way} the port: {s} SYN, payload {amount(b, cell.case.size)}"
        for way, (s, b) in seen.items()
    ]


CASES = (
    Case("ss", GROUP, OWN, during=(ss,), quick=True),
    Case("the devices' counters", GROUP, DIRECTIONS, during=(devices,), quick=True),
    Case(
        "tcpdump on the device",
        GROUP,
        OWN,
        prepare=_tcpdump,
        after=(tcpdump,),
        size=300_000,
        quick=True,
    ),
)
