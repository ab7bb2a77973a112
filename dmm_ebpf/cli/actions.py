# SPDX-License-Identifier: Apache-2.0
"""What the commands do that is more than one call and one print.

Arguments come as typed and are checked here; answers go out through output.py and tables.py. Every
failure is a DmmError.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import gather, output, tables
from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError
from dmm_ebpf.tui import units
from dmm_ebpf.tui.flowfilter import FlowFilter, parse_endpoint

if TYPE_CHECKING:
    from dmm_ebpf.rd.model import Policy

# What the Resource Director's socket takes in one message, less what goes with the text.
_MARK = re.compile(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")


def detach(instance: str, *, everything: bool, as_json: bool) -> None:
    """Detach one instance or all; all are tried before the first error is raised."""
    from dmm_ebpf.instancename import check_name

    check_name(instance)
    from dmm_ebpf.rd import service

    names = service.instances() if everything else [instance]
    gone: list[dict[str, Any]] = []
    error: DmmError | None = None
    told = contextlib.ExitStack()  # never closed: the process ends when all is told
    for name in names:
        try:
            undone = service.detach(name, told)
            gone.append({"instance": name, "removed": undone.removed, "unknown": undone.unknown})
        except DmmError as exc:
            error = error or exc
    if as_json:
        output.print_json(gone)
    else:
        if not names:
            output.note("no instance is attached")
        for entry in gone:
            what = ", ".join(units.clean(text) for text in entry["removed"])
            print(
                f"instance {entry['instance']}: "
                + (f"removed {what}" if what else "there was nothing to remove")
            )
            for text in entry["unknown"]:
                output.note(f"instance {entry['instance']}: {text}")
    if error is not None:
        raise error


def compile_programs() -> None:
    """Compile what attach and run may want, and keep it."""
    if os.geteuid() != 0:
        raise PrivilegeError("keep compiled programs", why="not root", hint="run it with sudo")
    from dmm_ebpf.loader import cache
    from dmm_ebpf.loader import compile as compiler

    for kept in compiler.prepare():
        print(f"{cache.FOLDER}: {kept}")


def policy_check(file: Path, *, as_json: bool) -> None:
    """Print what a policy holds. Raises PolicyError when it is refused."""
    policy = load_policy(file)
    counts = policy_counts(policy)
    if as_json:
        output.print_json({"ok": True, **counts})
    else:
        print(f"ok: {_counts_text(counts)}")


def load_policy(file: Path) -> Policy:
    """The policy in file. Raises PolicyError."""
    from dmm_ebpf.rd import policy

    return policy.load(file)


def policy_counts(policy: Policy) -> dict[str, int]:
    """How many rules, routes and stacks a policy names; the built-in stacks are not counted."""
    from dmm_ebpf.rd.model import BUILT_IN

    return {
        "rules": len(policy.rules),
        "routes": policy.n_routes,
        "stacks": sum(name not in BUILT_IN for name in policy.stacks),
    }


def _counts_text(counts: dict[str, Any]) -> str:
    return ", ".join(tables.count(counts, key) for key in ("rules", "routes", "stacks"))


def policy_apply(file: Path, instance: str, *, as_json: bool) -> None:
    """Send a policy file's text to the Resource Director, which checks it again before it takes it."""
    from dmm_ebpf.rd import client, policy

    text = policy.read(file)
    with client.Client(instance, timeout_s=client.APPLY_TIMEOUT_S) as rd:
        answer = rd.call("policy_apply", path=str(file.resolve()), text=text)
    if as_json:
        output.print_json({"instance": instance, **answer})
    else:
        print(
            f"applied to instance {instance}: generation {answer.get('generation')}, {_counts_text(answer)}"
        )


def policy_show(instance: str | None, *, as_json: bool) -> None:
    """Print the policy in force."""
    from dmm_ebpf.rd import client

    name = gather.the_instance(instance)
    with client.Client(name) as rd:
        answer = rd.call("policy_show")
    if as_json:
        output.print_json({"instance": name, **answer})
    elif answer.get("text") is None:
        output.note(f"instance {name} has no policy; it only observes")
    else:
        sys.stdout.write(answer["text"])


def route_query(
    address: str,
    *,
    proto: str,
    cgroup: str | None,
    uid: str | None,
    comm: str | None,
    mark: str | None,
    direction: str,
) -> dict[str, Any]:
    """The parameters of route_get from what was typed. Raises UsageError."""
    host, port = parse_endpoint(address)
    return {
        "addr": str(host),
        "port": port,
        "proto": proto,
        "cgroup": None if cgroup is None else _cgroup(cgroup),
        "uid": None if uid is None else _uid(uid),
        "comm": comm,
        "mark": None if mark is None else _mark(mark),
        "direction": direction,
    }


def _cgroup(text: str) -> str:
    """As rules name it, wherever cgroup v2 is mounted; one that does not exist can be asked about too."""
    from dmm_ebpf.loader import cgroup

    try:
        return cgroup.name_of(cgroup.resolve(text))
    except DmmError:
        return text


def _uid(text: str) -> int:
    if text.isascii() and text.isdecimal() and int(text) < 2**32:
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(f"look up user {text!r}", why="there is no such user, and it is not a uid") from None


def _mark(text: str) -> int:
    value = int(text, 0 if text[:2] in {"0x", "0X"} else 10) if _MARK.fullmatch(text) else -1
    if 0 <= value < 2**32:
        return value
    raise UsageError(
        f"take {text!r} as a mark", why="a mark is a number of 32 bits, decimal or 0x hexadecimal"
    )


def route_get(query: dict[str, Any], *, policy: Path | None, instance: str | None, as_json: bool) -> None:
    """Answer by a policy file, or by an instance's policy and the state of its stacks."""
    if policy is not None:
        if instance is not None:
            raise UsageError("ask for a route", why="--policy and --instance exclude each other")
        answer = _evaluate(policy, query)
    else:
        from dmm_ebpf.rd import client

        name = gather.the_instance(instance)
        with client.Client(name) as rd:
            answer = {"instance": name, **rd.call("route_get", **query)}
    if as_json:
        output.print_json(answer)
    else:
        port = "" if query["port"] is None else f" port {query['port']}"
        tables.print_route(answer, f"{query['addr']} proto {query['proto']}{port}")


def _evaluate(file: Path, query: dict[str, Any]) -> dict[str, Any]:
    from dmm_ebpf.rd import evaluate

    verdict: dict[str, Any] = evaluate.route_get(
        load_policy(file), evaluate.Query.from_params(query)
    ).to_dict()
    return verdict


def flows(instance: str | None, wanted: FlowFilter, *, iec: bool, as_json: bool) -> None:
    """List open flows."""
    found = gather.flows(instance)
    rows = (row for row in found if wanted.matches(row))
    if as_json:
        output.print_json_rows(rows)
    else:
        tables.print_flows(list(rows), iec=iec)
    found.finish()


def follow(instance: str | None, wanted: FlowFilter, *, iec: bool, as_json: bool) -> None:
    """Print events until interrupted; events that are about no flow pass only an empty filter."""
    follower = gather.Follower(instance)
    try:
        for event in follower.events():
            if not wanted.matches(event):
                continue
            if as_json:
                output.print_json_line(event)
            else:
                print(tables.event_line(event, iec=iec), flush=True)
    finally:
        follower.close()


def top(instance: str | None, *, interval_s: float, filters: str, iec: bool) -> None:
    """Show the TUI until q."""
    wanted = FlowFilter.parse(filters)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "show live flows",
            why="standard input and output are not a terminal",
            hint="dmm-ebpf flows lists them",
        )
    from dmm_ebpf.rd import client
    from dmm_ebpf.tui.app import TopApp
    from dmm_ebpf.tui.source import RdSource

    source = RdSource(instance)
    if instance is not None:
        with client.Client(instance) as rd:
            rd.call("status")
    else:
        client.instances()
    app = TopApp(source, interval_s=interval_s, flow_filter=wanted, filter_text=filters, iec=iec)
    app.run()
    if app.failure is not None:
        raise app.failure
