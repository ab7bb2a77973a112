# SPDX-License-Identifier: Apache-2.0
"""What the commands do that is more than one call and one print.

Arguments come as typed and are checked here; answers go out through output.py and tables.py. Every
failure is a DmmError.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import gather, output, tables, where
from dmm_ebpf.digits import whole
from dmm_ebpf.errors import DmmError, NotAttachedError, PolicyError, PrivilegeError, UsageError
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import FlowFilter, looks_like_port, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.flow import Flow
    from dmm_ebpf.records.policy import Checked, RouteAnswer, Warned
    from dmm_ebpf.records.status import Detached

_MAX_WARNINGS = 20  # of one policy
_MARK = re.compile(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")


def detach(instance: str | None, *, everything: bool, as_json: bool) -> None:
    """Detach one instance (None: "default") or all; all are tried and told of before the
    first error is raised.
    """
    from dmm_ebpf.instancename import check_name

    if everything and instance is not None:
        raise UsageError(
            "detach",
            why=f"--all means every instance of this host, and --instance only {units.clean(instance)}",
            hint="give one of them",
        )
    name = check_name("default" if instance is None else instance)
    from dmm_ebpf.rd.life import attaching as service
    from dmm_ebpf.records.status import Detached

    names = service.instances() if everything else [name]
    gone: list[Detached] = []
    failed: dict[str, DmmError] = {}
    told = contextlib.ExitStack()  # never closed: the process ends when all is told
    for name in names:
        try:
            undone = service.detach(name, told)
            if not (everything or undone.removed or undone.unknown):
                raise NotAttachedError(
                    f"detach instance {name}", why="there is none", hint=_others()
                )
            gone.append(Detached(name, undone.removed, undone.unknown))
        except PermissionError:
            failed[name] = PrivilegeError(
                f"detach instance {name}", why="not root", hint="run it with sudo"
            )
        except DmmError as error:
            failed[name] = error
    _tell_detached(gone, failed, as_json=as_json)
    if failed:
        raise next(iter(failed.values()))


def _tell_detached(gone: list[Detached], failed: dict[str, DmmError], *, as_json: bool) -> None:
    """What went, and of several why others did not; why the first did not, the caller raises."""
    from dmm_ebpf.records.failed import Failed
    from dmm_ebpf.records.status import Detached

    if as_json:
        if gone or not failed:
            left = [Detached(name, [], [], Failed.alone(error)) for name, error in failed.items()]
            output.print_json(sorted(gone + left, key=lambda one: one.instance))
        return
    if not (gone or failed):
        output.note("no instance is attached")
    for entry in gone:
        what = ", ".join(units.clean(text) for text in entry.removed)
        print(f"instance {entry.instance}: removed {what or 'nothing'}")
        for text in entry.unknown:
            output.note(f"instance {entry.instance}: {text}")
    for name, error in [*failed.items()][1:]:
        output.note(f"instance {name}: {error}")


def _others() -> str:
    from dmm_ebpf.rd.life import attaching as service

    names = service.instances()
    return f"there are {', '.join(names)}" if names else "none is attached on this host"


def compile_programs() -> None:
    """Compile what attach and run may want, and keep it."""
    if os.geteuid() != 0:
        raise PrivilegeError("keep compiled programs", why="not root", hint="run it with sudo")
    from dmm_ebpf.loader import cache
    from dmm_ebpf.loader import compile as compiler

    for kept in compiler.prepare():
        print(f"{cache.FOLDER}: {kept}")


def policy_check(file: Path, *, host: bool, as_json: bool) -> None:
    """Print what a policy holds and what to warn of. Raises PolicyError, with all that is
    wrong, when it is refused.
    """
    from dmm_ebpf.rd.policy.plugins import check_plugins
    from dmm_ebpf.records.policy import Checked
    from dmm_ebpf.records.record import ABSENT

    try:
        policy = load_policy(file)
        unread = check_plugins(policy, policy.user_stacks())
        found = _host_check(policy) if host else []
    except PolicyError as error:
        if as_json:
            output.print_json(_refused(error))
        raise
    for sentence in unread:
        output.note(f"not checked: {sentence}")
    counts = policy_counts(policy)
    warned, more = warnings_of(policy)
    warned += found
    if as_json:
        output.print_json(
            Checked(
                ok=True,
                rules=counts["rules"],
                routes=counts["routes"],
                stacks=counts["stacks"],
                errors=[],
                enough=ABSENT,
                warnings=warned,
                more_warnings=more,
            )
        )
    else:
        print_warnings(warned, more)
        print(f"ok: {counts_text(**counts)}")


def _host_check(policy: Policy) -> list[Warned]:
    """What to warn of on this host. PolicyError, with all that is wrong: it would be refused."""
    from dmm_ebpf.rd.director import hostcheck, sets

    readings = sets.read_all(policy.sets)
    wrong = list(hostcheck.host_errors(policy, hostcheck.HostFacts.read(), readings))
    if wrong:
        first, *others = wrong
        first.others = tuple(others)
        raise first
    return list(hostcheck.host_warnings(policy, readings))


def _refused(exc: PolicyError) -> Checked:
    from dmm_ebpf.records.failed import Failed
    from dmm_ebpf.records.policy import Checked
    from dmm_ebpf.records.record import ABSENT

    told = [Failed.alone(one) for one in exc.all()]
    return Checked(
        ok=False,
        rules=ABSENT,
        routes=ABSENT,
        stacks=ABSENT,
        errors=told,
        enough=exc.enough,
        warnings=[],
        error=told[0],
    )


def warnings_of(policy: Policy) -> tuple[list[Warned], int]:
    """The first of what is to warn of, by line, and of how much more."""
    from dmm_ebpf.rd.policy.locate import order
    from dmm_ebpf.rd.policy.warnings import warnings

    total = 0

    def found() -> Iterator[Warned]:
        """There may be one for each of millions of routes: they are counted as they pass,
        and not kept.
        """
        nonlocal total
        for one in warnings(policy):
            total += 1
            yield one

    first = heapq.nsmallest(_MAX_WARNINGS, found(), key=lambda one: order(policy.source, one.place))
    return first, total - len(first)


def print_warnings(warned: list[Warned], more: int) -> None:
    """As notes."""
    for one in warned:
        output.note(f"warning: {one}")
    if more:
        output.note(f"and {more} warnings more")


def load_policy(file: Path) -> Policy:
    """The policy in file. Raises PolicyError."""
    from dmm_ebpf.rd.policy import parse as policy

    return policy.load(file)


def policy_counts(policy: Policy) -> dict[str, int]:
    """How many rules, routes and stacks a policy names; the built-in stacks are not counted."""
    from dmm_ebpf.rd.policy.model import BUILT_IN

    return {
        "rules": len(policy.rules),
        "routes": policy.n_routes,
        "stacks": sum(name not in BUILT_IN for name in policy.stacks),
    }


def counts_text(rules: int, routes: int, stacks: int) -> str:
    """policy_counts() in words."""
    counts = {"rules": rules, "routes": routes, "stacks": stacks}
    return ", ".join(tables.count(number, what) for what, number in counts.items())


def policy_apply(file: Path, instance: str, *, as_json: bool) -> None:
    """Send a policy file's text to the Resource Director, which checks it again before it takes it.

    What `policy check` would say of the file is said here, in the same words.
    """
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.rd.policy import parse as policy

    text = policy.read(file)
    warned, more = warnings_of(policy.parse(text, source=str(file), base=file.parent))
    with client.Client(instance, timeout_s=client.APPLY_TIMEOUT_S) as rd:
        applied = rd.policy_apply(path=str(file.resolve()), text=text)
    if as_json:
        output.print_json(replace(applied, warnings=warned, more_warnings=more))
    else:
        counts = counts_text(applied.rules, applied.routes, applied.stacks)
        print(f"applied to instance {instance}: generation {applied.generation}, {counts}")
        print_warnings(warned, more)
        for entry in applied.pending:
            output.note(f"{tables.pending_text(entry)}, which does not exist")
        tables.note_sets(applied.sets or ())


def route_query(
    address: str,
    *,
    proto: str,
    cgroup: str | None,
    container: str | None,
    pid: str | None,
    unit: str | None,
    uid: str | None,
    gid: str | None,
    comm: str | None,
    mark: str | None,
    direction: str,
    executable: str | None = None,
    dscp: str | None = None,
    choice: str | None = None,
    local_port: int | None = None,
    interface: str | None = None,
    source: str | None = None,
    in_interface: str | None = None,
) -> dict[str, Any]:
    """The parameters of route_get from what was typed; a process gives those that were
    not. Raises UsageError.
    """
    what = "ask for a route"
    host, port = parse_endpoint(address, proto)
    if port is None and looks_like_port(address):
        before, _, last = address.rpartition(":")
        output.note(
            f"{address} is an address without a port; for port {last} write [{before}]:{last}"
        )
    forward = {"--from": source or None, "--in-interface": in_interface or None}
    _refuse_direction(
        what, direction, forward, {"--local-port": local_port, "--interface": interface}
    )
    who = None
    if pid is not None:
        from dmm_ebpf.rd.places import finding as places

        who = places.person(where.number(pid, what))
    return {
        "addr": str(host),
        "port": port,
        "proto": proto,
        "cgroup": group_of(what, cgroup, container=container, unit=unit, pid=pid),
        "uid": _uid(uid) if uid is not None else who and who.uid,
        "gid": _gid(gid) if gid is not None else who and who.gid,
        "comm": comm if comm is not None else who and who.comm,
        "executable": executable if executable is not None else who and who.executable,
        "mark": None if mark is None else _mark(mark),
        "direction": direction,
        "dscp": None if dscp is None else _dscp(dscp),
        "choice": choice,
        "local_port": local_port,
        "interface": interface,
        **({"source": source} if source else {}),
        **({"in_interface": in_interface} if in_interface else {}),
    }


def _refuse_direction(
    what: str, direction: str, forward: dict[str, str | None], connecting: dict[str, object]
) -> None:
    """Options that say something of flows of another direction. By option, what was typed."""
    for option, said in forward.items():
        if said is not None and direction != "forward":
            why = f"{option} is of flows that the host forwards, and this one's direction is {direction}"
            raise UsageError(what, why=why, hint="add --direction forward")
    for option, value in connecting.items():
        if value is not None and direction != "connect":
            why = f"{option} is of sockets that connect, and this flow's direction is {direction}"
            raise UsageError(what, why=why, hint="leave it out")


def group_of(
    what: str,
    cgroup: str | None,
    *,
    container: str | None,
    unit: str | None,
    pid: str | None = None,
) -> str | None:
    """The cgroup that was named, as rules name it; None when none was. Raises UsageError, which
    starts with what.
    """
    found = where.place(what, cgroup=cgroup, container=container, unit=unit, pid=pid)
    return None if found is None else _cgroup(found.cgroup)


def _cgroup(text: str) -> str:
    """As rules name it, wherever cgroup v2 is mounted; whether it exists is for whoever
    answers to say.
    """
    from dmm_ebpf.loader import cgroup

    return cgroup.name_of(cgroup.place(text))


def _uid(text: str) -> int:
    uid = whole(text, 2**32)
    if uid is not None:
        return uid
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(
            f"look up user {text!r}", why="there is no such user, and it is not a uid"
        ) from None


def _gid(text: str) -> int:
    gid = whole(text, 2**32)
    if gid is not None:
        return gid
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(
            f"look up group {text!r}", why="there is no such group, and it is not a gid"
        ) from None


def _mark(text: str) -> int:
    value = int(text, 0 if text[:2] in {"0x", "0X"} else 10) if _MARK.fullmatch(text) else -1
    if 0 <= value < 2**32:
        return value
    raise UsageError(
        f"take {text!r} as a mark", why="a mark is a number of 32 bits, decimal or 0x hexadecimal"
    )


def _dscp(text: str) -> int:
    from dmm_ebpf.rd.policy.values import ValueRefusedError, parse_dscp

    try:
        number = whole(text, 2**32)
        return parse_dscp(text if number is None else number)
    except ValueRefusedError as error:
        raise UsageError(f"take {text!r} as a DSCP", why=error.why, hint=error.hint) from None


def route_get(
    query: dict[str, Any],
    *,
    policy: Path | None,
    instance: str | None,
    reasons: bool,
    as_json: bool,
) -> None:
    """Answer by a policy file, or by an instance's policy and the state of its stacks. reasons: why
    a candidate of an adaptive route serves, too, which only an instance knows.
    """
    if reasons and policy is not None:
        why = "which candidate serves only an instance knows, and --policy asks none"
        raise UsageError("tell why", why=why, hint="leave --policy or --why out")
    if policy is not None:
        if instance is not None:
            raise UsageError("ask for a route", why="--policy and --instance exclude each other")
        answer = _evaluate(policy, query)
    else:
        from dmm_ebpf.rd.api import client

        name = gather.the_instance(instance)
        with client.Client(name) as rd:
            answer = rd.route_get(**query, **({"reasons": True} if reasons else {}))
    if as_json:
        output.print_json(answer)
    else:
        print_answer(answer, query)


def print_answer(answer: RouteAnswer, query: dict[str, Any]) -> None:
    """The answer to route_query()."""
    port = "" if query["port"] is None else f" port {query['port']}"
    tables.print_route(answer, f"{query['addr']} proto {query['proto']}{port}")
    if query["port"] is None:
        print("    without a port, so by no route that names ports")


def _evaluate(file: Path, query: dict[str, Any]) -> RouteAnswer:
    from dmm_ebpf.rd.director.executables import by_file
    from dmm_ebpf.rd.director.groups import known_cgroup
    from dmm_ebpf.rd.policy import evaluate

    policy, asked = load_policy(file), evaluate.Query.from_params(query)
    known_cgroup(policy, asked)
    return evaluate.answer(policy, by_file(policy, asked))


def flows(instance: str | None, wanted: FlowFilter, *, iec: bool, as_json: bool) -> None:
    """List open flows. Raises UsageError for a filter by what is not there."""
    from dmm_ebpf.cli import known

    known.check_stacks(wanted, instance)
    found = gather.flows(instance)
    rows: Iterator[Flow] = (row for row in found if wanted.matches(row))
    first = next(rows, None)
    if first is None:
        known.check_places(wanted, instance)
    else:
        rows = itertools.chain((first,), rows)
    if as_json:
        output.print_json_rows(rows)
    else:
        tables.print_flows(list(rows), iec=iec)
    found.finish()


def follow(instance: str | None, wanted: FlowFilter, *, iec: bool, as_json: bool) -> None:
    """Print events until interrupted; events that are about no flow pass only an empty filter.
    Raises UsageError for a filter by what is not there.
    """
    from dmm_ebpf.cli import known

    known.check(wanted, instance)
    follower = gather.Follower(instance)
    try:
        for event in follower.events():
            if not wanted.matches_event(event):
                continue
            if as_json:
                output.print_json_line(event)
            else:
                print(tables.event_line(event, iec=iec), flush=True)
    finally:
        follower.close()


def _there(instance: str) -> None:
    """NotAttachedError if the instance is not; what a dead Resource Director left is."""
    from dmm_ebpf.rd.api import client

    try:
        with client.Client(instance) as rd:
            rd.call("status")
    except client.NotServingError:
        raise
    except NotAttachedError:
        if not client.socket_path(instance).parent.is_dir():
            raise


def top(instance: str | None, *, interval_s: float, filters: str, iec: bool) -> None:
    """Show the TUI until q."""
    wanted = FlowFilter.parse(filters)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "show live flows",
            why="standard input and output are not a terminal",
            hint="dmm-ebpf flows lists them",
        )
    from dmm_ebpf.cli import known
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.tui.app import TopApp
    from dmm_ebpf.tui.source import RdSource

    source = RdSource(instance)
    if instance is not None:
        _there(instance)
    else:
        client.instances()
    known.check(wanted, instance)
    app = TopApp(
        source,
        interval_s=interval_s,
        flow_filter=wanted,
        filter_text=filters,
        iec=iec,
        check=lambda typed: known.check(typed, instance),
    )
    app.run()
    if app.failure is not None:
        raise app.failure
