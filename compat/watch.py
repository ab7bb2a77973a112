# SPDX-License-Identifier: Apache-2.0
"""What a case may look at: each is called with the cell and what the application's connection told.

The name of the function is the name of the fact. Nothing that is returned may be of this
run alone (cell.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compat.case import IP4
from compat.cell import Cell, amount, net_dev, settled

Got = dict[str, Any]


def _expressions(cell: Cell) -> list[Any]:
    shown = cell.site.nft(cell.host).listed("ruleset")
    rules = [item["rule"] for item in shown if "rule" in item]
    return [e for rule in rules for e in rule["expr"]]


def _counted(cell: Cell) -> list[tuple[int, int]]:
    """Packets and bytes of every counter, of nft, then of iptables, in the order of the rules."""
    found = [
        (int(e["counter"]["packets"]), int(e["counter"]["bytes"]))
        for e in (_expressions(cell) if cell.case.nft else [])
        if isinstance(e, dict) and isinstance(e.get("counter"), dict)
    ]
    if cell.case.iptables:
        tool = cell.case.tool if cell.family == IP4 else cell.case.tool.replace("ip", "ip6", 1)
        saved = cell.host.run([f"{tool}-save", "-c"]).stdout
        found += [
            (int(p), int(b)) for p, b in re.findall(r"^\[(\d+):(\d+)\] -A", saved, re.MULTILINE)
        ]
    return found


def counters(cell: Cell, got: Got) -> list[str]:
    """Bytes of each counter, in payloads of all connections."""
    return [amount(size, cell.case.size) for _, size in _counted(cell)]


def hits(cell: Cell, got: Got) -> list[str]:
    """Which counters have been hit at all."""
    return ["hit" if packets else "none" for packets, _ in _counted(cell)]


def packets(cell: Cell, got: Got) -> list[int]:
    """Packets of each counter, exactly: for rules that match one packet of a connection."""
    return [packets for packets, _ in _counted(cell)]


def quotas(cell: Cell, got: Got) -> list[str]:
    """How much of each quota is used."""
    return [
        "used up" if e["quota"].get("used", 0) >= 0.9 * e["quota"]["val"] else "left"
        for e in _expressions(cell)
        if isinstance(e, dict) and isinstance(e.get("quota"), dict)
    ]


def sets(cell: Cell, got: Got) -> list[str]:
    """The elements of every set: addresses by their names."""
    found = []
    for item in cell.site.nft(cell.host).listed("sets"):
        for element in item.get("set", {}).get("elem", []):
            value = (
                element["elem"]["val"]
                if isinstance(element, dict) and "elem" in element
                else element
            )
            found.append(cell.site.name_of(value) if isinstance(value, str) else str(value))
    return sorted(found)


def _conntrack(cell: Cell) -> list[str]:
    text = cell.host.call(lambda: Path("/proc/thread-self/net/nf_conntrack").read_text())
    ports = {str(cell.port), str(cell.port2)}
    found = []
    for line in text.splitlines():
        words = line.split()
        pairs = re.findall(r"(src|dst|sport|dport|mark|zone)=(\S+)", line)
        if words[2] != "tcp" or not any(k in ("sport", "dport") and v in ports for k, v in pairs):
            continue
        known = {str(cell.port): "port", str(cell.port2): "port2"}
        shown = [
            f"{k}={cell.site.name_of(v) if k in ('src', 'dst') else known.get(v, 'app') if 'port' in k else v}"
            for k, v in pairs
        ]
        flags = re.findall(r"\[\w+\]", line)
        found.append(" ".join([words[5], *shown, *flags]))
    return sorted(found)


def conntrack(cell: Cell, got: Got) -> list[str]:
    """The connection's entries: state, both tuples, mark, flags; at the end, once the state is
    one of the end.
    """
    open_states = ("ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "SYN_SENT")
    if got and cell.scratch.get("conntrack during"):
        return list(
            settled(
                cell,
                lambda: _conntrack(cell),
                lambda e: not any(o in x for x in e for o in open_states),
            )
        )
    cell.scratch["conntrack during"] = True
    return _conntrack(cell)


def devices(cell: Cell, got: Got) -> dict[str, str]:
    """Bytes in and out of those of the host's own devices that carry the payload."""
    now = net_dev(cell.host)
    found = {}
    for name in sorted(cell.before.keys() & now.keys()):
        ways = [
            amount(b - a, cell.case.size) for a, b in zip(cell.before[name], now[name], strict=True)
        ]
        if name.startswith(("eth", "top", "br")) and set(ways) - {"none", "few"}:
            found[name] = f"in {ways[0]}, out {ways[1]}"
    return found


def path(cell: Cell, got: Got) -> list[str]:
    """Which devices the payload left by."""
    now = net_dev(cell.host)
    return [
        name
        for name in sorted(cell.before.keys() & now.keys())
        if name.startswith(("eth", "top"))
        and now[name][1] - cell.before[name][1] > 0.5 * cell.case.size
    ]


def marks(cell: Cell, got: Got) -> str:
    """SO_MARK as the application reads it, at both ends."""
    return f"{got['mark']:#x}, at the server {got['server']['mark']:#x}" if got else ""


def ss(cell: Cell, got: Got) -> list[str]:
    """Lines of ss(8) for the connection on this host: state, and both ends by their names."""
    shown = cell.host.run(
        ["ss", "-Htn", f"( sport = :{cell.port} or dport = :{cell.port} )"]
    ).stdout
    found = []
    for line in shown.splitlines():
        state, _, _, local, peer = line.split()[:5]
        ends = [end.rpartition(":") for end in (local, peer)]
        found.append(
            " ".join(
                [
                    state,
                    *(
                        cell.site.name_of(a.strip("[]"))
                        + (":port" if p == str(cell.port) else ":app")
                        for a, _, p in ends
                    ),
                ]
            )
        )
    return sorted(found)


def qdisc(cell: Cell, got: Got) -> list[str]:
    """How much each shaping qdisc and each class of the device has sent."""
    found = []
    for what in ("qdisc", "class"):
        shown = cell.host.run(["tc", "-s", what, "show", "dev", cell.site.device]).stdout
        for kind, handle, sent in re.findall(
            r"(?:qdisc|class) (tbf|htb) (\S+).*\n Sent (\d+) bytes", shown
        ):
            number = "" if kind == "tbf" else f" {handle}"
            share = amount(int(sent), cell.case.size)
            found.append(f"{what} {kind}{number}: {'none' if share == 'few' else share}")
    return found
