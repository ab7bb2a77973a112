# SPDX-License-Identifier: Apache-2.0
"""How each listing looks to a person: its columns, and the blocks and lines that are no table.

Pure, except that the print functions print. What a row does not have shows as "-".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import faults, output
from dmm_ebpf.cli.output import Column, print_table
from dmm_ebpf.rd.director.nested import nested_text
from dmm_ebpf.records.central import Central
from dmm_ebpf.records.flow import Flow, FlowEvent, Listener
from dmm_ebpf.records.policy import RouteAnswer
from dmm_ebpf.records.record import ABSENT, Maybe, Record, known, to_json
from dmm_ebpf.records.stack import ProcessRow, StackRow
from dmm_ebpf.records.status import Missing, NamedSet, NicRow, Pending, Refused, Status
from dmm_ebpf.show import units
from dmm_ebpf.show.who import who

if TYPE_CHECKING:
    from dmm_ebpf.records.event import AnyEvent

_DIRECTIONS = {"connect": "out", "listen": "in", "forward": "fwd"}


def _text(name: str) -> Callable[[Record], str]:
    """A field that is text; "-" where it has none."""
    return lambda row: units.clean(known(getattr(row, name)))


def _number(name: str) -> Callable[[Record], str]:
    return lambda row: _digits(getattr(row, name))


def _digits(value: Maybe[int | None]) -> str:
    return units.NONE if known(value) is None else str(value)


def count(number: int | None, what: str) -> str:
    """2 rules, 1 rule, 1 prefix, - rules."""
    one = what.removesuffix("es" if what.endswith("xes") else "s")
    return f"{_digits(number)} {what if number != 1 else one}"


def stack_text(flow: Flow) -> str:
    """The stack that serves, and the one the route named where that is another, with why: kernel
    (for wan: full). kernel (attach): it was open before the attach. wan (chosen): its program has
    chosen it; kernel (choice of wan refused): it may not. multi (mptcp): both ends speak MPTCP;
    multi (mptcp: plain): the socket does, and the peer does not.
    """
    stack, wanted = units.clean(flow.stack), units.clean(flow.wanted)
    why = f"{flow.why}, by instance {flow.carrier}" if flow.carrier else flow.why
    because = units.clean(why) if why else ""
    notes = [because] if because else []
    if wanted != stack:
        notes = [f"for {wanted}{f': {because}' if because else ''}"]
    if flow.choice:
        chosen = units.clean(known(flow.chosen))
        notes.append("chosen" if flow.choice == "taken" else f"choice of {chosen} {flow.choice}")
    if flow.mptcp is not ABSENT:
        notes.append("mptcp" if flow.mptcp else "mptcp: plain")
    return f"{stack} ({', '.join(notes)})" if notes else stack


def _instance_column(instances: Iterable[str]) -> list[Column[Any]]:
    """The instance, only where there is more than one to tell apart."""
    several = len(set(instances)) > 1
    return [Column("INSTANCE", _text("instance"))] if several else []


def _copies_column(rows: list[Flow]) -> list[Column[Flow]]:
    """Copies against loss, and how many were needed, only where a flow has some."""
    if not any(row.copies for row in rows):
        return []
    return [Column("COPIES", _copies, right=True, rank=3)]


def _copies(row: Flow) -> str:
    return "-" if row.copies is ABSENT else f"{row.copies} ({row.copies_needed or 0})"


def _parity_column(rows: list[Flow]) -> list[Column[Flow]]:
    """Parity against loss, and the symbols that were repaired by it, the peer's and ours, only
    where a flow has some.
    """
    if not any(row.parity or row.repaired for row in rows):
        return []
    return [Column("PARITY", _parity, right=True, rank=3)]


def _parity(row: Flow) -> str:
    if row.parity is ABSENT:
        return "-"
    return f"{row.parity} ({row.peer_repaired or 0}+{row.repaired or 0})"


def _transport_column(rows: list[Flow]) -> list[Column[Flow]]:
    """By which a user stack speaks to the peer, only where that is not TCP for all."""
    if all(row.transport in {ABSENT, "", "tcp"} for row in rows):
        return []
    return [Column("TRANSPORT", lambda r: units.clean(r.transport or "-"), rank=6)]


def _agreed_column(rows: list[Flow]) -> list[Column[Flow]]:
    """What the stacks of both hosts agreed on, or why on nothing; only where one of them asked."""
    if not any(map(_asked, rows)):
        return []
    return [Column("AGREED", lambda r: units.clean(r.agreed or _why_plain(r)), rank=8)]


def _asked(row: Flow) -> bool:
    return (row.agreement or "none") != "none"


def _why_plain(row: Flow) -> str:
    return f"({row.agreement})" if _asked(row) else ""


def print_flows(rows: list[Flow], *, iec: bool) -> None:
    """The table of `dmm-ebpf flows`."""
    columns: list[Column[Flow]] = [
        *_instance_column(row.instance for row in rows),
        Column("STATE", lambda r: units.state(r.state)),
        Column("LOCAL", lambda r: units.endpoint(r.src, r.sport), rank=4),
        Column("DIR", lambda r: _DIRECTIONS[r.direction] if r.direction else "-", rank=7),
        Column("PEER", lambda r: units.endpoint(r.dst, r.dport)),
        Column("STACK", stack_text),
        *_transport_column(rows),
        Column("TABLE", _text("table"), rank=6, flex=True),
        Column("RULE", _text("rule"), rank=5, flex=True),
        Column("ROUTE", _text("route"), flex=True, cut=units.shorten_middle),
        Column("PROCESS", who, flex=True, cut=units.shorten_name),
        Column("SENT", lambda r: units.size(r.bytes_sent, iec=iec), right=True, rank=1),
        Column("RECV", lambda r: units.size(r.bytes_received, iec=iec), right=True, rank=1),
        Column("SRTT", lambda r: units.duration_us(r.srtt_us), right=True, rank=2),
        Column("RETRANS", _number("retransmits"), right=True, rank=3),
        *_agreed_column(rows),
        *_copies_column(rows),
        *_parity_column(rows),
        Column("AGE", lambda r: units.age(r.age_s), right=True, rank=8),
        Column("CGROUP", _text("cgroup"), rank=9, flex=True),
    ]
    print_table(columns, rows)


def print_listeners(rows: list[Listener]) -> None:
    """The table of `dmm-ebpf listeners`."""
    columns: list[Column[Listener]] = [
        *_instance_column(row.instance for row in rows),
        Column("PROTO", _text("proto"), rank=3),
        Column("LISTENING", lambda r: units.endpoint(r.addr, r.port)),
        Column("TABLE", _text("table"), flex=True),
        Column("RULE", _text("rule"), flex=True),
        Column(
            "PROCESS",
            lambda r: units.process(r.comm, r.pid),
            flex=True,
            cut=units.shorten_name,
        ),
        Column("SOCKETS", _number("sockets"), right=True, rank=1),
        Column("CGROUP", _text("cgroup"), rank=2, flex=True),
    ]
    print_table(columns, rows)


def _io(row: StackRow) -> str:
    """The port; for AF_XDP how it works on each NIC, said once where all are the same."""
    modes = sorted(set((row.xdp or {}).values()))
    port = row.port or row.io or ""
    return units.clean(f"{port} ({'; '.join(modes)})" if modes else port)


def print_stacks(rows: list[StackRow], indent: str = "") -> None:
    """The table of `dmm-ebpf stacks`; below, the processes of stacks that have several, and why
    one does not serve.
    """
    columns: list[Column[StackRow]] = [
        *_instance_column(row.instance for row in rows),
        Column("STACK", _text("name"), flex=True),
        Column("KIND", _text("kind")),
        Column("STATE", _text("state")),
        *_full_column(row.full for row in rows),
        Column("FLOWS", _number("flows"), right=True),
        Column("PID", _number("pid"), right=True, rank=1),
        Column("TRANSPORT", _text("transport"), rank=3),
        Column("CONGESTION", _text("congestion"), rank=2),
        Column("IO", _io, rank=4),
        Column("NICS", lambda r: units.clean(",".join(r.nics or ())), rank=5),
        Column("FALLBACK", _text("fallback"), rank=6),
        Column("RESTARTS", _number("restarts"), right=True, rank=7),
    ]
    print_table(columns, rows, indent)
    _print_processes(rows, indent)
    for row in rows:
        if row.full:
            _say_full(row, row.full, indent)
        if row.reason:
            name, state, reason = (units.clean(v) for v in (row.name, row.state, row.reason))
            print(f"{indent}{name} is {state}: {reason}")
        _say_ports(row, indent)
        _say_faults(row, indent)
        _say_injected(row, indent)
        _say_unlimited(row, indent)


def _say_ports(row: StackRow, indent: str) -> None:
    """Where the policy leaves the choice: the port of each NIC, and why."""
    if row.io != "auto":
        return
    for port in row.ports or ():
        name, nic, by, why = (units.clean(v) for v in (row.name, port.nic, port.port, port.why))
        print(f"{indent}{name} on {nic} by {by}: {why}")


def _say_faults(row: StackRow, indent: str) -> None:
    """What went wrong with a stack's plug-ins."""
    for by, plugin, fate in (
        (row.congestion, known(row.plugin), "went on without it"),
        (row.transport, known(row.transport_plugin), "ended"),
    ):
        if plugin is not None and plugin.faults:
            name, text, fault = (units.clean(v) for v in (row.name, known(by), plugin.fault))
            several = f"{count(plugin.faults, 'faults')}, {count(plugin.connections, 'connections')} {fate}"
            print(f"{indent}{name} by {text}: {several}; the first: {fault}")


def _say_injected(row: StackRow, indent: str) -> None:
    """Faults that the stack itself injects into its packets, on request."""
    for one in row.faults or ():
        print(f"{indent}{faults.sentence(one)}")


def _say_unlimited(row: StackRow, indent: str) -> None:
    """Which limits of the host's the processes of a stack have to do without."""
    missing = {process.limits.missing for process in row.processes or () if process.limits}
    for why in sorted(filter(None, missing)):
        print(
            f"{indent}{units.clean(row.name)} has only resource limits (setrlimit): {units.clean(why)}"
        )


def _full_column(full: Iterable[Maybe[list[str]]]) -> list[Column[Any]]:
    """Of what a stack or a process is full, only where one is."""
    if not any(full):
        return []
    return [Column("FULL", lambda row: units.clean(",".join(row.full or ())))]


def _say_full(row: StackRow, full: list[str], indent: str) -> None:
    """Of how much a full stack has how much in use."""
    memory, limit = (
        units.size(known(v), iec=True) for v in (row.memory_bytes, row.memory_limit_bytes)
    )
    used = {
        "connections": f"{known(row.in_use)} of {known(row.max_connections)} connections",
        "memory": f"{memory} of {limit} of memory",
        "frames": "its NIC takes no frames",
        "refused": "it had to refuse a connection within the last second",
    }
    why = ", ".join(used.get(reason, reason) for reason in full)
    fallback = units.clean(known(row.fallback))
    print(f"{indent}{units.clean(row.name)} is full ({why}): new flows go to {fallback}")


@dataclass(frozen=True)
class _ProcessLine:
    """A line of the table of processes."""

    stack: StackRow
    process: ProcessRow

    @property
    def full(self) -> Maybe[list[str]]:
        """Of what the process is."""
        return self.process.full

    @property
    def instance(self) -> str:
        """Whose the stack is."""
        return self.stack.instance


def _print_processes(stacks: list[StackRow], indent: str) -> None:
    rows = [
        _ProcessLine(stack, process)
        for stack in stacks
        if stack.processes and len(stack.processes) > 1
        for process in stack.processes
    ]
    if not rows:
        return
    columns: list[Column[_ProcessLine]] = [
        *_instance_column(row.instance for row in rows),
        Column("STACK", lambda r: units.clean(r.stack.name), flex=True),
        Column("PROCESS", lambda r: str(r.process.process), right=True),
        Column("STATE", lambda r: units.clean(known(r.process.state))),
        *_full_column(row.full for row in rows),
        Column("CONNECTIONS", lambda r: _digits(r.process.connections), right=True),
        Column("PID", lambda r: _digits(r.process.pid), right=True),
        Column("DEVICE", lambda r: units.clean(r.process.device), rank=1),
        Column("RESTARTS", lambda r: _digits(r.process.restarts), right=True, rank=2),
    ]
    print()
    print_table(columns, rows, indent)


def print_status(status: Status) -> None:
    """One instance, as a block."""
    director = {
        "up": f"running, pid {status.pid}, up {units.age(status.uptime_s)}",
        "silent": "does not answer",
    }.get(str(known(status.rd)), "dead")
    policy = status.policy
    lines = [
        ("director", director),
        *([("PROBLEM", units.clean(status.problem))] if status.problem else []),
        ("cgroup", units.clean(status.cgroup)),
        ("netns", units.clean(status.netns)),
        *([("group", f"{units.clean(status.group)} may ask")] if status.group else []),
        ("policy", f"{units.clean(policy)}, generation {status.generation}" if policy else "none"),
        ("", f"{count(status.rules, 'rules')}, {count(status.routes, 'routes')}"),
        *([("", f"{count(status.live_routes, 'live routes')}")] if status.live_routes else []),
        *_central_lines(status.central or None),
        *_refused_lines(status.policy_refused),
        ("flows", f"{_digits(status.flows)} open, {count(status.listeners, 'listeners')}"),
        *(("nic", _nic_text(nic)) for nic in status.nics),
        *(("MISSING", _missing_text(entry)) for entry in status.missing),
        *(("pending", pending_text(entry)) for entry in status.pending),
        *((_SET_LABELS[one.state], _set_text(one)) for one in status.sets or ()),
        *(("NESTED", units.clean(nested_text(entry))) for entry in status.nested or ()),
        *(("NOT SERVED", units.clean(why)) for why in (status.earlier,) if why),
        ("counters", _counters_text(status.counters)),
    ]
    print(f"instance {units.clean(status.instance)}")
    for name, text in lines:
        print(f"  {name:<10}{text}".rstrip())
    if status.stacks:
        print_stacks(status.stacks, indent="  ")
    for stack in status.stacks:
        if stack.counters:
            print(f"  {units.clean(stack.name)} counted: {_counters_text(stack.counters)}")


_SET_LABELS = {"followed": "set", "missing": "pending", "refused": "SET", "unread": "SET"}


def _refused_lines(refused: Refused | None) -> list[tuple[str, str]]:
    """Why the policy file is not what is in force, when it is not."""
    if refused is None:
        return []
    return [("REFUSED", f"{_since(refused.since)}: {units.clean(refused.reason)}")]


def _central_lines(one: Central | None) -> list[tuple[str, str]]:
    """How it stands with the fleet's policy."""
    if one is None:
        return []
    state = f"push {one.push}" if one.push else "no push"
    if one.state in {"refused", "held"} and one.wanted > one.push:
        state += f", not {one.wanted}"
    elif one.state == "waiting":
        state += f": {units.clean(one.why)}"
    lines = [("fleet", f"{units.clean(one.place)}, as {units.clean(one.host)}: {state}")]
    lines += [("OVERRIDDEN", units.clean(one.why))] if one.state == "overridden" else []
    lines += [("NO ETCD", f"{units.clean(one.lost)}; the policy stays")] if one.lost else []
    lines += [("NOT LISTED", units.clean(one.unpublished))] if one.unpublished else []
    lines += [("NOT KEPT", units.clean(one.unkept))] if one.unkept else []
    return lines


def _missing_text(entry: Missing) -> str:
    """What should stand on the host and does not."""
    return f"{units.clean(entry.what)}: {units.clean(entry.why)} ({_since(entry.since)})"


def pending_text(entry: Pending) -> str:
    """A rule that waits for its cgroup, or for the file of its executable."""
    what = f"cgroup {entry.cgroup}" if entry.cgroup is not None else f"file {entry.executable}"
    return f"rule {units.clean(entry.rule)}: waits for the {units.clean(what)}"


def note_sets(sets: Iterable[NamedSet]) -> None:
    """Of sets that a policy names those that are waited for."""
    for one in sets:
        if one.state != "followed":
            output.note(_set_text(one))


def _set_text(one: NamedSet) -> str:
    """A set, and how it stands with it."""
    words = {
        "followed": f"has {count(one.prefixes, 'prefixes')}",
        "missing": f"has no address, and is waited for: {units.clean(one.why)}"
        if one.why
        else "does not exist, and is waited for",
        "refused": f"cannot be used: {units.clean(one.why)}",
        "unread": f"keeps {count(one.prefixes, 'prefixes')}: {units.clean(one.why)}",
    }
    return f"{units.clean(one.set)} {words[one.state]}"


def _since(moment: float) -> str:
    return time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(moment))


def _nic_text(nic: NicRow) -> str:
    name, mode, stack = (units.clean(v) for v in (nic.ifname, nic.mode, nic.stack))
    return f"{name} ({mode}) for stack {stack}"


def _counters_text(counters: Mapping[str, int]) -> str:
    told = [f"{units.clean(name)} {value}" for name, value in counters.items() if value]
    return ", ".join(told) or "all zero"


# What route_get's "why" means, behind the stack that serves; {wanted}: the one that
# the route names.
_WHY_NOT = {
    "down": " (fallback: {wanted} is down)",
    "full": " (fallback: {wanted} is full, or hangs)",
    "udp": " ({wanted} carries no such datagrams)",
    "group": " ({wanted} carries no datagrams to many)",
    "loopback": " ({wanted} carries nothing that stays on this host)",
    "forwarded": " ({wanted} is for sockets, and what is only forwarded has none here)",
    "link-local": " ({wanted} carries nothing to link-local addresses)",
    "listener": " ({wanted} refuses no connection that a client opens)",
    "device": " ({wanted} does not serve {device}, by which it leaves)",
    "filter": " (a tc filter on {device} stands before those of {wanted})",
    "outside": " (it is outside {attached}, to which the instance is attached)",
}


# What `route get` calls what a rule asks for, where that is not the name with dashes in front.
_OPTIONS = {
    "netns": "netns",
    "source": "--from",
    "in_interface": "--in-interface",
    "local_port": "--local-port",
}


def option_of(fact: str) -> str:
    """The option of `route get` by which a fact that rules ask for is said."""
    return _OPTIONS.get(fact, f"--{fact}")


def print_route(answer: RouteAnswer, asked: str) -> None:
    """The answer of `route get`, in the manner of ip-route(8)."""
    wanted, attached, device = (
        units.clean(known(v)) for v in (answer.wanted, answer.attached, answer.device)
    )
    why = _WHY_NOT.get(answer.why or "", "").format(wanted=wanted, attached=attached, device=device)
    stack, table, rule, route = (
        units.clean(v) for v in (answer.stack, answer.table, answer.rule, answer.route)
    )
    print(f"{asked} stack {stack}{why} table {table}\n    rule {rule}\n    route {route}")
    if answer.live:
        print("    which is live: put beside the policy by route add or replace")
    if answer.element:
        print(f"    which has {units.clean(answer.element)} now")
    if answer.transport:
        print(f"    transport {units.clean(answer.transport)}")
    if answer.path:
        path = answer.path
        told = f"{path.prefix} goes by {path.chosen} for {units.age(path.since_s)}: {path.why}"
        print(f"    by {path.goal}, {units.clean(told)}")
    if answer.path and answer.paths is not ABSENT:
        from dmm_ebpf.cli import pathtables

        for line in pathtables.reasons(answer.path, answer.paths):
            print(f"    {units.clean(line)}")
    if answer.choice:
        print(f"    the program's choice is {answer.choice}")
    for key, value in (answer.assumed or {}).items():
        print(f"    for a process in {units.clean(value)} itself; --{key} names another {key}")
    for entry in answer.unasked:
        needs = " and ".join(option_of(key) for key in entry.needs)
        print(
            f"    rule {units.clean(entry.rule)} comes before, and may match: it asks for {needs}"
        )


def event_line(event: AnyEvent, *, iec: bool) -> str:
    """One event of `flows --follow`, in the manner of ip-monitor(8)."""
    moment = event.time
    clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"
    head = f"{clock} {units.clean(event.instance)} {event.type:<11}"
    if isinstance(event, FlowEvent):
        return f"{head} {_flow_event_text(event, iec=iec)}"
    told = [
        f"{key} {units.clean(value)}"
        for key, value in _plain(event.to_map()).items()
        if key not in {"type", "time", "instance"}
    ]
    return f"{head} {' '.join(told)}".rstrip()


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """With records in it as maps."""
    plain: dict[str, Any] = json.loads(to_json(told))
    return plain


def _flow_event_text(event: FlowEvent, *, iec: bool) -> str:
    flow = event.flow
    whose, local = who(flow), units.endpoint(flow.src, flow.sport)
    table, rule, route = (units.clean(v) for v in (flow.table, flow.rule, flow.route))
    if event.type in {"listen", "unlisten"}:
        return f"{whose} {local} table {table} rule {rule}"
    line = (
        f"{whose} {local} {'<' if flow.direction == 'listen' else '>'} "
        f"{units.endpoint(flow.dst, flow.dport)} stack {stack_text(flow)} "
        f"table {table} rule {rule} route {route}"
    )
    if event.type == "close":
        sent, received = (units.size(v, iec=iec) for v in (flow.bytes_sent, flow.bytes_received))
        line += f" sent {sent} received {received}"
        if event.reason:
            line += f" reason {units.clean(event.reason)}"
    return line
