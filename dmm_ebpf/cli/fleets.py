# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf controller` does that is more than one call and one print."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmm_ebpf.central import place as places
from dmm_ebpf.cli import output
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.central.client import Change
    from dmm_ebpf.central.controller import Controller, Order, Standing
    from dmm_ebpf.central.layout import Bundle, Rollout
    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.central import HostRow, Rolled, RolloutRow
    from dmm_ebpf.records.fleet import FleetEvent

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """Of a roll-out, in seconds. within_s: for a host to take a push. watch_s: that its paths are
    compared with before; 0: they are not.
    """

    within_s: float
    watch_s: float = 0.0


def _place(text: str | None) -> places.Place:
    named = text or os.environ.get(places.PLACE_VARIABLE, "")
    if not named:
        hint = f"name it by --etcd etcd://HOST/PREFIX, or in {places.PLACE_VARIABLE}"
        raise UsageError("find the fleet's policy", why="no etcd is named", hint=hint)
    return places.parse(named)


@asynccontextmanager
async def _controller(text: str | None) -> AsyncIterator[Controller]:
    from dmm_ebpf.central.client import connect
    from dmm_ebpf.central.controller import Controller
    from dmm_ebpf.central.fleet import Fleet

    etcd = await connect(_place(text))
    try:
        yield Controller(Fleet(etcd))
    finally:
        await etcd.close()


def _run(text: str | None, does: Callable[[Controller], Awaitable[T]]) -> T:
    async def main() -> T:
        async with _controller(text) as controller:
            return await does(controller)

    return asyncio.run(main())


def hosts(etcd: str | None, selector: str | None, *, as_json: bool) -> None:
    """Print the rollout, and every instance that is listed."""
    from dmm_ebpf.records.fleet import FleetListed

    wanted = _selector(selector)

    async def look(controller: Controller) -> tuple[RolloutRow, list[HostRow]]:
        standing = await controller.standing()
        return await controller.row(standing), standing.rows()

    rollout, rows = _run(etcd, look)
    rows = [one for one in rows if wanted is None or wanted.holds(one.labels)]
    if as_json:
        output.print_json(FleetListed(rollout, rows))
        return
    print(_rollout_text(rollout))
    output.print_table(_COLUMNS, rows)
    for one in rows:
        if one.why:
            print(f"{units.clean(one.host)}: {units.clean(one.why)}")


def _selector(text: str | None) -> Any:
    from dmm_ebpf.rd.policy.hosts import parse_selector
    from dmm_ebpf.rd.policy.values import ValueRefusedError

    if text is None:
        return None
    try:
        return parse_selector(text)
    except ValueRefusedError as error:
        raise UsageError("select hosts", why=error.why, hint=error.hint) from None


def _rollout_text(one: RolloutRow) -> str:
    if one.state == "none":
        return f"{one.place}: nothing was pushed"
    words = [f"{one.place}: push {one.push} is {_state_text(one)}"]
    if one.of:
        words.append(f"it brings back push {one.of}")
    words.append(f"by {units.clean(one.by)} {_when(one.at)}")
    words += [f'"{units.clean(one.note)}"'] if one.note else []
    words += [f"routes by themselves: {one.routes}"] if one.routes else []
    return "; ".join(words)


def _state_text(one: RolloutRow) -> str:
    if one.state == "everywhere":
        return "everywhere"
    steps = ", then ".join(units.clean(step) for step in one.steps[: one.reached])
    rest = f"for {steps}; all others have {f'push {one.stable}' if one.stable else 'none'}"
    if one.state == "halted":
        return f"HALTED {rest}: {units.clean(one.why)}"
    return f"rolling out {rest}"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _host_line(one: HostRow) -> str:
    label = f"{units.clean(one.host)}/{units.clean(one.instance)}"
    if one.state == "applied":
        return f"{label} took push {one.push}"
    why = f": {units.clean(one.why)}" if one.why else ""
    return f"{label} {one.state} push {one.wanted}{why}"


_COLUMNS: list[output.Column[HostRow]] = [
    output.Column("HOST", lambda one: units.clean(one.host)),
    output.Column("INSTANCE", lambda one: units.clean(one.instance), rank=3),
    output.Column("STATE", lambda one: units.clean(one.state)),
    output.Column("PUSH", lambda one: str(one.push), right=True),
    output.Column("WANTED", lambda one: str(one.wanted), right=True, rank=2),
    output.Column("ROUTES", lambda one: str(one.routes), right=True, rank=4),
    output.Column("VERSION", lambda one: units.clean(one.version), rank=5),
    output.Column(
        "LABELS",
        lambda one: units.clean(
            ",".join(f"{k}={v}" for k, v in sorted(one.labels.items()) if k != "host")
        ),
        rank=1,
        flex=True,
    ),
]


def push(
    file: Path,
    etcd: str | None,
    steps: Sequence[str],
    note: str,
    pace: Pace,
    *,
    as_json: bool,
) -> None:
    """Push a policy, and roll it out. Raises PolicyError; DmmError if a host does not take it."""
    from dmm_ebpf.central.controller import Order

    for one in steps:
        _selector(one)
    bundle, policy = read_bundle(file)

    async def work(controller: Controller) -> Rolled:
        standing = await controller.standing()
        await asyncio.to_thread(_check_with_routes, bundle, standing, str(file))
        order = Order(
            bundle, str(file), len(policy.rules), policy.n_routes, tuple(steps), note=note
        )
        return await _order(controller, order, pace, as_json=as_json)

    _finish(etcd, work, as_json=as_json)


def resume(etcd: str | None, pace: Pace, *, as_json: bool) -> None:
    """Go on with a roll-out that was halted, or whose operator went away."""

    async def work(controller: Controller) -> Rolled:
        rollout = (await controller.standing()).rollout
        steps, reached = (rollout.steps, rollout.reached) if rollout else ([], 0)
        async with controller.watching(steps, pace.watch_s) as watch:
            if watch is not None:
                await controller.take_before(watch, steps)
            tell = _tell(as_json=as_json)
            return await controller.roll(pace.within_s, tell, watch, judged=reached)

    _finish(etcd, work, as_json=as_json)


def rollback(
    push_number: int | None,
    etcd: str | None,
    steps: Sequence[str],
    note: str,
    pace: Pace,
    *,
    as_json: bool,
) -> None:
    """Push again what was everywhere before, or push_number."""
    from dmm_ebpf.central.controller import Order

    for one in steps:
        _selector(one)

    async def work(controller: Controller) -> Rolled:
        number, bundle, was = await controller.back(push_number)
        order = Order(bundle, was.source, was.rules, was.routes, tuple(steps), note=note, of=number)
        return await _order(controller, order, pace, as_json=as_json)

    _finish(etcd, work, as_json=as_json)


async def _order(controller: Controller, order: Order, pace: Pace, *, as_json: bool) -> Rolled:
    async with controller.watching(order.steps, pace.watch_s) as watch:
        if watch is not None:
            if not as_json:
                print(f"for {watch.seconds:g} s: how the paths are before it", flush=True)
            await controller.take_before(watch, order.steps)
        rollout = await controller.push(order)
        if not as_json:
            print(_pushed_text(rollout, order), flush=True)
        return await controller.roll(pace.within_s, _tell(as_json=as_json), watch)


def _pushed_text(rollout: Rollout, order: Order) -> str:
    from dmm_ebpf.cli.tables import count

    what = f"push {rollout.push}"
    if order.of:
        what += f" brings back push {order.of}"
    what += f": {count(order.rules, 'rules')}, {count(order.routes, 'routes')}"
    to = f"hosts with {rollout.steps[0]} first" if rollout.steps else "all hosts"
    return f"{what}, for {to}"


def _tell(*, as_json: bool) -> Callable[[HostRow], object]:
    return (lambda _: None) if as_json else (lambda one: print(_host_line(one), flush=True))


def _finish(
    etcd: str | None, work: Callable[[Controller], Awaitable[Rolled]], *, as_json: bool
) -> None:
    rolled = _run(etcd, work)
    if as_json:
        output.print_json(rolled)
    if not rolled.done:
        what = f"roll push {rolled.push} out"
        if rolled.state != "halted":
            raise DmmError(what, why=rolled.why, hint="the others have it")
        hint = "no other host gets it; go on by push --resume, or end it by rollback"
        raise DmmError(what, why=rolled.why, hint=hint)
    if not as_json:
        for one in rolled.silent:
            print(f"{units.clean(one)}: too little traffic to compare its paths")
        from dmm_ebpf.cli.tables import count

        took = count(len(rolled.hosts), "instances")
        print(f"push {rolled.push} is everywhere: {took} took it")


def read_bundle(file: Path) -> tuple[Bundle, Policy]:
    """A policy file with the routes files that it names, as they are pushed. Raises PolicyError."""
    import tomllib

    from dmm_ebpf.central.layout import Bundle, is_file_name
    from dmm_ebpf.errors import PolicyError
    from dmm_ebpf.rd.policy import parse as policies

    text = policies.read(file)
    policy = policies.parse(text, source=str(file), base=file.parent)
    if policy.labels is not None:
        why = "[labels] are one host's, and a push is for many"
        raise PolicyError(f"push {policy.place('labels')}", why=why, hint="take them away")
    files = {}
    for name, table in tomllib.loads(text).get("tables", {}).items():
        named = table.get("routes_from")
        if named is None:
            continue
        if not is_file_name(named):
            why = f'routes_from = "{named}": a file that is pushed stands beside the policy'
            hint = "name it without a folder"
            raise PolicyError(f"push {policy.place('tables', name)}", why=why, hint=hint)
        files[named] = (file.parent / named).read_text(encoding="utf-8")
    return Bundle(text, files), policy


def _check_with_routes(bundle: Bundle, standing: Standing, source: str) -> None:
    """Raises PolicyError, LayoutError if the single routes in etcd do not go with the policy."""
    if not standing.routes:
        return
    from dmm_ebpf.rd.policy import parse as policies
    from dmm_ebpf.rd.sources.compose import compose

    composed = compose(bundle, standing.routes, {"host": "any"})
    _parsed(policies.parse, composed.text, bundle, f"{source} with the single routes in etcd")


def _parsed(parse: Callable[..., Policy], text: str, bundle: Bundle, source: str) -> Policy:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in bundle.files.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        return parse(text, source=source, base=Path(folder))


def diff(file: Path | None, etcd: str | None, push_number: int | None, *, as_json: bool) -> None:
    """Print in what a file's policy, or without one the push that is rolled out, differs from what
    was pushed. SystemExit with code 1 when there is a difference.
    """
    from dmm_ebpf.rd.policy import parse as policies
    from dmm_ebpf.rd.policy.difference import difference
    from dmm_ebpf.records.fleet import FleetCompared

    async def look(controller: Controller) -> tuple[int, Bundle, Bundle | None]:
        standing = await controller.standing()
        if standing.rollout is None:
            raise UsageError("compare with what was pushed", why="nothing was pushed")
        now = standing.rollout
        number = push_number or (now.push if file is not None else now.stable)
        old = await controller.bundle(number) if number else None
        new = await controller.bundle(now.push) if file is None else None
        from dmm_ebpf.central.layout import Bundle

        return number, old or Bundle(""), new

    number, old, new = _run(etcd, look)
    before = _parsed(policies.parse, old.policy, old, f"push {number}")
    if new is not None:
        after = _parsed(policies.parse, new.policy, new, "what is rolled out")
    else:
        assert file is not None
        after = read_bundle(file)[1]
    found = list(difference(before, after))
    if as_json:
        output.print_json(FleetCompared(number, not found, found))
    else:
        for one in found:
            print(one)
        if not found:
            output.note(f"no difference to push {number}")
    if found:
        raise SystemExit(1)


def watch(etcd: str | None, *, as_json: bool) -> None:
    """Print what changes, until Ctrl-C."""

    async def follow(controller: Controller) -> None:
        async for one in controller.follow():
            now = round(time.time(), 3)
            if as_json:
                output.print_json_line(_event(one, now))
            else:
                print(f"{_when(now)} {_event_text(one)}", flush=True)

    _run(etcd, follow)


def _event(one: HostRow | Rollout | Change, now: float) -> FleetEvent:
    from dmm_ebpf.central.client import Change
    from dmm_ebpf.central.layout import Rollout
    from dmm_ebpf.records.fleet import FleetEvent

    if isinstance(one, Rollout):
        return FleetEvent("rollout", now, state=one.state, push=one.push, why=one.why)
    if isinstance(one, Change):
        return FleetEvent("put" if one.item else "gone", now, key=one.key)
    return FleetEvent("host", now, host=one)


def _event_text(one: HostRow | Rollout | Change) -> str:
    from dmm_ebpf.central.client import Change
    from dmm_ebpf.central.layout import Rollout

    if isinstance(one, Rollout):
        steps = ", then ".join(one.steps[: one.reached])
        to = f" for {steps}" if one.state != "everywhere" else ""
        why = f": {units.clean(one.why)}" if one.why else ""
        return f"push {one.push} is {one.state}{units.clean(to)}{why}"
    if isinstance(one, Change):
        return f"{units.clean(one.key)} {'has changed' if one.item else 'is gone'}"
    return _host_line(one)
