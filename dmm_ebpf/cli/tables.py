# SPDX-License-Identifier: Apache-2.0
"""How each listing looks to a person: its columns, and the blocks and lines that are no table.

Pure, except that the print functions print. Rows are the dictionaries of the Resource Director,
unchanged; a field that an older or newer one does not send shows as "-".
"""

from __future__ import annotations

import time
from typing import Any

from dmm_ebpf.cli.output import Column, Row, print_table
from dmm_ebpf.rd.director.nested import nested_text
from dmm_ebpf.show import units

_DIRECTIONS = {"connect": "out", "listen": "in", "forward": "fwd"}


def _text(key: str) -> Any:
    return lambda row: units.clean(row.get(key))


def _number(key: str) -> Any:
    return lambda row: units.NONE if row.get(key) is None else str(row[key])


def count(row: Row, key: str) -> str:
    """2 rules, 1 rule, - rules."""
    return f"{_number(key)(row)} {key if row.get(key) != 1 else key.removesuffix('s')}"


def stack_text(flow: Row) -> str:
    """The stack that serves, and the one the route named where that is another, with why: kernel
    (for wan: full). kernel (attach): it was open before the attach.
    """
    stack, wanted, why = flow.get("stack"), flow.get("wanted"), flow.get("why")
    if carrier := flow.get("carrier"):
        why = f"{why}, by instance {carrier}"
    if wanted in (None, stack):
        return f"{units.clean(stack)} ({units.clean(why)})" if why else units.clean(stack)
    return (
        f"{units.clean(stack)} (for {units.clean(wanted)}{f': {units.clean(why)}' if why else ''})"
    )


def _instance_column(rows: list[Row]) -> list[Column]:
    """The instance, only where there is more than one to tell apart."""
    several = len({row.get("instance") for row in rows}) > 1
    return [Column("INSTANCE", _text("instance"))] if several else []


def _who(row: Row) -> str:
    """The process; of what the host only forwards, the device by which it came in."""
    if row.get("kind") == "forwarded":
        return f"by {row.get('in_interface') or 'a device that is gone'}"
    return units.process(row.get("comm"), row.get("pid"))


def print_flows(rows: list[Row], *, iec: bool) -> None:
    """The table of `dmm-ebpf flows`."""
    print_table(
        [
            *_instance_column(rows),
            Column("STATE", lambda r: units.state(r.get("state"))),
            Column("LOCAL", lambda r: units.endpoint(r.get("src"), r.get("sport")), rank=4),
            Column("DIR", lambda r: _DIRECTIONS.get(str(r.get("direction")), "-"), rank=7),
            Column("PEER", lambda r: units.endpoint(r.get("dst"), r.get("dport"))),
            Column("STACK", stack_text),
            Column("TABLE", _text("table"), rank=6, flex=True),
            Column("RULE", _text("rule"), rank=5, flex=True),
            Column("ROUTE", _text("route"), flex=True),
            Column("PROCESS", _who, flex=True),
            Column("SENT", lambda r: units.size(r.get("bytes_sent"), iec=iec), right=True, rank=1),
            Column(
                "RECV", lambda r: units.size(r.get("bytes_received"), iec=iec), right=True, rank=1
            ),
            Column("SRTT", lambda r: units.duration_us(r.get("srtt_us")), right=True, rank=2),
            Column("RETRANS", _number("retransmits"), right=True, rank=3),
            Column("AGE", lambda r: units.age(r.get("age_s")), right=True, rank=8),
            Column("CGROUP", _text("cgroup"), rank=9, flex=True),
        ],
        rows,
    )


def print_listeners(rows: list[Row]) -> None:
    """The table of `dmm-ebpf listeners`."""
    print_table(
        [
            *_instance_column(rows),
            Column("LISTENING", lambda r: units.endpoint(r.get("addr"), r.get("port"))),
            Column("TABLE", _text("table"), flex=True),
            Column("RULE", _text("rule"), flex=True),
            Column("PROCESS", lambda r: units.process(r.get("comm"), r.get("pid")), flex=True),
            Column("SOCKETS", _number("sockets"), right=True, rank=1),
            Column("CGROUP", _text("cgroup"), rank=2, flex=True),
        ],
        rows,
    )


def _io(row: Row) -> str:
    """The port; for AF_XDP how it works on each NIC, said once where all are the same."""
    modes = sorted(set(map(str, (row.get("xdp") or {}).values())))
    port = str(row.get("port") or row.get("io") or "")
    return units.clean(f"{port} ({'; '.join(modes)})" if modes else port)


def print_stacks(rows: list[Row], indent: str = "") -> None:
    """The table of `dmm-ebpf stacks`; below, the processes of stacks that have several, and why
    one does not serve.
    """
    print_table(
        [
            *_instance_column(rows),
            Column("STACK", _text("name"), flex=True),
            Column("KIND", _text("kind")),
            Column("STATE", _text("state")),
            *_full_column(rows),
            Column("FLOWS", _number("flows"), right=True),
            Column("PID", _number("pid"), right=True, rank=1),
            Column("TRANSPORT", _text("transport"), rank=3),
            Column("CONGESTION", _text("congestion"), rank=2),
            Column("IO", _io, rank=4),
            Column("NICS", lambda r: units.clean(",".join(map(str, r.get("nics") or ()))), rank=5),
            Column("FALLBACK", _text("fallback"), rank=6),
            Column("RESTARTS", _number("restarts"), right=True, rank=7),
        ],
        rows,
        indent,
    )
    _print_processes(rows, indent)
    for row in rows:
        if row.get("full"):
            _say_full(row, indent)
        if row.get("reason"):
            name, state, reason = (units.clean(row.get(key)) for key in ("name", "state", "reason"))
            print(f"{indent}{name} is {state}: {reason}")
        _say_ports(row, indent)
        _say_faults(row, indent)
        _say_unlimited(row, indent)


def _say_ports(row: Row, indent: str) -> None:
    """Where the policy leaves the choice: the port of each NIC, and why."""
    if row.get("io") != "auto":
        return
    for port in row.get("ports") or ():
        name, nic, by, why = (
            units.clean(v) for v in (row.get("name"), port["nic"], port["port"], port["why"])
        )
        print(f"{indent}{name} on {nic} by {by}: {why}")


def _say_faults(row: Row, indent: str) -> None:
    """What went wrong with a stack's plug-in."""
    plugin = row.get("plugin") or {}
    if plugin.get("faults"):
        name, congestion, fault = (
            units.clean(v) for v in (row.get("name"), row.get("congestion"), plugin.get("fault"))
        )
        several = f"{count(plugin, 'faults')}, {count(plugin, 'connections')} went on without it"
        print(f"{indent}{name} by {congestion}: {several}; the first: {fault}")


def _say_unlimited(row: Row, indent: str) -> None:
    """Which limits of the host's the processes of a stack have to do without."""
    missing = {(p.get("limits") or {}).get("missing") for p in row.get("processes") or ()}
    for why in sorted(filter(None, missing)):
        print(
            f"{indent}{units.clean(row.get('name'))} has only resource limits (setrlimit): {units.clean(why)}"
        )


def _full_column(rows: list[Row]) -> list[Column]:
    """Of what a stack is full, only where one is."""
    if not any(row.get("full") for row in rows):
        return []
    return [Column("FULL", lambda r: units.clean(",".join(map(str, r.get("full") or ()))))]


def _say_full(row: Row, indent: str) -> None:
    """Of how much a full stack has how much in use."""
    used = {
        "connections": f"{row.get('in_use')} of {row.get('max_connections')} connections",
        "memory": f"{units.size(row.get('memory_bytes'), iec=True)} of "
        f"{units.size(row.get('memory_limit_bytes'), iec=True)} of memory",
        "frames": "its NIC takes no frames",
        "refused": "it had to refuse a connection within the last second",
    }
    why = ", ".join(used.get(str(reason), str(reason)) for reason in row["full"])
    print(
        f"{indent}{units.clean(row.get('name'))} is full ({why}): new flows go to {units.clean(row.get('fallback'))}"
    )


def _print_processes(stacks: list[Row], indent: str) -> None:
    rows = [
        {"instance": stack.get("instance"), "stack": stack.get("name"), **process}
        for stack in stacks
        if len(stack.get("processes") or ()) > 1
        for process in stack["processes"]
    ]
    if not rows:
        return
    print()
    print_table(
        [
            *_instance_column(rows),
            Column("STACK", _text("stack"), flex=True),
            Column("PROCESS", _number("process"), right=True),
            Column("STATE", _text("state")),
            *_full_column(rows),
            Column("CONNECTIONS", _number("connections"), right=True),
            Column("PID", _number("pid"), right=True),
            Column("DEVICE", _text("device"), rank=1),
            Column("RESTARTS", _number("restarts"), right=True, rank=2),
        ],
        rows,
        indent,
    )


def print_status(status: Row) -> None:
    """One instance, as a block."""
    up = status.get("rd") == "up"
    director = (
        f"running, pid {status.get('pid')}, up {units.age(status.get('uptime_s'))}"
        if up
        else "dead"
    )
    policy = status.get("policy")
    lines = [
        ("director", director),
        *([("PROBLEM", units.clean(status["problem"]))] if status.get("problem") else []),
        ("cgroup", units.clean(status.get("cgroup"))),
        ("netns", units.clean(status.get("netns"))),
        (
            "policy",
            f"{units.clean(policy)}, generation {status.get('generation')}" if policy else "none",
        ),
        ("", f"{count(status, 'rules')}, {count(status, 'routes')}"),
        *_refused_lines(status.get("policy_refused")),
        ("flows", f"{_number('flows')(status)} open, {count(status, 'listeners')}"),
        *(("nic", _nic_text(nic)) for nic in status.get("nics") or ()),
        *(("MISSING", _missing_text(entry)) for entry in status.get("missing") or ()),
        *(("pending", pending_text(entry)) for entry in status.get("pending") or ()),
        *(("NESTED", units.clean(nested_text(entry))) for entry in status.get("nested") or ()),
        *(("NOT SERVED", units.clean(why)) for why in (status.get("earlier"),) if why),
        ("counters", _counters_text(status.get("counters") or {})),
    ]
    print(f"instance {units.clean(status.get('instance'))}")
    for name, text in lines:
        print(f"  {name:<10}{text}".rstrip())
    stacks = status.get("stacks") or []
    if stacks:
        print_stacks(stacks, indent="  ")
    for stack in stacks:
        if stack.get("counters"):
            print(
                f"  {units.clean(stack.get('name'))} counted: {_counters_text(stack['counters'])}"
            )


def _refused_lines(refused: Row | None) -> list[tuple[str, str]]:
    """Why the policy file is not what is in force, when it is not."""
    if not refused:
        return []
    return [("REFUSED", f"{_since(refused)}: {units.clean(refused.get('reason'))}")]


def _missing_text(entry: Row) -> str:
    """What should stand on the host and does not."""
    return f"{units.clean(entry.get('what'))}: {units.clean(entry.get('why'))} ({_since(entry)})"


def pending_text(entry: Row) -> str:
    """A rule that waits for its cgroup."""
    return f"rule {units.clean(entry.get('rule'))}: waits for the cgroup {units.clean(entry.get('cgroup'))}"


def _since(entry: Row) -> str:
    return time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(float(entry.get("since") or 0)))


def _nic_text(nic: Row) -> str:
    name, mode, stack = (units.clean(nic.get(key)) for key in ("ifname", "mode", "stack"))
    return f"{name} ({mode}) for stack {stack}"


def _counters_text(counters: Row) -> str:
    told = [f"{units.clean(name)} {value}" for name, value in counters.items() if value]
    return ", ".join(told) or "all zero"


# What route_get's "why" means, behind the stack that serves; {wanted}: the one that
# the route names.
_WHY_NOT = {
    "down": " (fallback: {wanted} is down or full)",
    "udp": " ({wanted} carries TCP alone)",
    "loopback": " ({wanted} carries nothing that stays on this host)",
    "forwarded": " ({wanted} is for sockets, and what is only forwarded has none here)",
    "link-local": " ({wanted} carries nothing to link-local addresses)",
    "listener": " ({wanted} refuses no connection that a client opens)",
    "device": " ({wanted} does not serve {device}, by which it leaves)",
    "outside": " (it is outside {attached}, to which the instance is attached)",
}


def print_route(answer: Row, asked: str) -> None:
    """The answer of `route get`, in the manner of ip-route(8)."""
    names = {key: units.clean(answer.get(key)) for key in ("wanted", "attached", "device")}
    why = _WHY_NOT.get(str(answer.get("why")), "").format(**names)
    print(
        f"{asked} stack {units.clean(answer.get('stack'))}{why} table {units.clean(answer.get('table'))}"
        f"\n    rule {units.clean(answer.get('rule'))}\n    route {units.clean(answer.get('route'))}"
    )
    for key, value in (answer.get("assumed") or {}).items():
        print(f"    for a process in {units.clean(value)} itself; --{key} names another {key}")
    for entry in answer.get("unasked") or ():
        needs = " and ".join(
            f"--{key.replace('_', '-')}" if key != "netns" else key for key in entry["needs"]
        )
        print(
            f"    rule {units.clean(entry['rule'])} comes before, and may match: it asks for {needs}"
        )


def event_line(event: Row, *, iec: bool) -> str:
    """One event of `flows --follow`, in the manner of ip-monitor(8)."""
    moment = float(event.get("time") or 0)
    clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"
    kind = str(event.get("type"))
    head = f"{clock} {units.clean(event.get('instance'))} {kind:<11}"
    if kind in {"stack", "policy", "policy_refused"}:
        told = [
            f"{key} {units.clean(event[key])}"
            for key in event
            if key not in {"type", "time", "instance"}
        ]
        return f"{head} {' '.join(told)}".rstrip()
    who = units.process(event.get("comm"), event.get("pid"))
    local = units.endpoint(event.get("src"), event.get("sport"))
    table, rule, route = (units.clean(event.get(key)) for key in ("table", "rule", "route"))
    if kind in {"listen", "unlisten"}:
        return f"{head} {who} {local} table {table} rule {rule}"
    line = (
        f"{head} {who} {local} {'<' if event.get('direction') == 'listen' else '>'} "
        f"{units.endpoint(event.get('dst'), event.get('dport'))} stack {stack_text(event)} "
        f"table {table} rule {rule} route {route}"
    )
    if kind == "close":
        sent, received = event.get("bytes_sent"), event.get("bytes_received")
        line += f" sent {units.size(sent, iec=iec)} received {units.size(received, iec=iec)}"
        if event.get("reason"):
            line += f" reason {units.clean(event['reason'])}"
    return line
