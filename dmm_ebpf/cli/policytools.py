# SPDX-License-Identifier: Apache-2.0
"""What `policy test`, `show`, `diff`, `schema` and `import` do: a policy held against what is
expected of it and against the one in force, what editors hold it against, and one made of another
project's files.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.cli import actions, gather, output
from dmm_ebpf.cli.routes import text_of
from dmm_ebpf.errors import DmmError, PolicyError, UsageError
from dmm_ebpf.records.record import to_json
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dmm_ebpf.rd.api.client import Client
    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.policy import Change, Held, RouteRow
    from dmm_ebpf.records.record import Maybe

MAX_SHOWN = 200  # of differences, as text and as JSON; the rest is counted


def policy_test(file: Path, expect: Path | None, *, as_json: bool) -> None:
    """Print which expectations do not hold. Raises PolicyError, DmmError when one does not."""
    from dmm_ebpf.rd.policy import expect as expecting
    from dmm_ebpf.rd.policy import parse as policies
    from dmm_ebpf.records.policy import AsExpected

    policy = actions.load_policy(file)
    beside = expect or file.with_suffix(".expect")
    text = policies.read(beside, "expectations")
    expected = expecting.read(text, policy, str(beside), parse_endpoint)
    found = list(expecting.held(policy, expected))
    failed = [one for one in found if not one.ok]
    if as_json:
        output.print_json(AsExpected(not failed, found))
    else:
        for one in failed:
            print(f"{beside}:{one.line}: {_told(one)}")
        if not failed:
            print(f"ok: {len(found)} of {len(found)} hold")
    if failed:
        raise DmmError(
            f"take {file} for what {beside} expects",
            why=f"{len(failed)} of {len(found)} expectations do not hold",
        )


def _told(one: Held) -> str:
    said = one.answer
    by = f"rule {said.rule}" if said.rule_number else "no rule has a route for it"
    words = [f"{one.text}: the stack is {said.stack}", by]
    if said.route:
        words.append(f"route {said.route}")
    if said.why:
        words.append(f"{said.wanted} does not serve it: {said.why}")
    words += [f"rule {rule.rule} asks for {', '.join(rule.needs)} too" for rule in said.unasked]
    return "; ".join(words)


def policy_show(instance: str | None, *, as_json: bool) -> None:
    """Print the policy in force, and what stands beside it."""
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.records.record import ABSENT

    name = gather.the_instance(instance)
    with client.Client(name) as rd:
        shown = rd.policy_show()
        live = live_routes(rd)
    if as_json:
        output.print_json(replace(shown, live=live or ABSENT))
    elif shown.text is None:
        output.note(f"instance {name} has no policy; it only observes")
    else:
        sys.stdout.write(shown.text)
        print_live(live)


def policy_diff(file: Path, instance: str | None, *, as_json: bool) -> None:
    """Print in what the file's policy differs from the one in force. Raises PolicyError; SystemExit
    with code 1 when there is a difference.
    """
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.rd.policy.difference import difference
    from dmm_ebpf.records.policy import Compared

    new = actions.load_policy(file)
    name = gather.the_instance(instance)
    with client.Client(name) as rd:
        old, live = in_force(rd), live_routes(rd)
    found = itertools.chain(difference(old, new), without(live, new))
    shown = list(itertools.islice(found, MAX_SHOWN))
    more = sum(1 for _ in found)
    changed = changed_files(name)
    if as_json:
        equal = not shown and not changed
        output.print_json(Compared(name, equal, shown, more, changed, staying(live, new)))
    else:
        print_changes(shown, more)
        note_live(staying(live, new))
        for path in changed:
            output.note(
                f"{path} has changed since its routes came in force; those are not compared"
            )
        if not shown and not changed:
            output.note(f"no difference: instance {name} does what {file} says")
    if shown or changed:
        raise SystemExit(1)


def changed_files(instance: str) -> list[str]:
    """The routes files of the policy in force that are not as they were when it was read: which
    routes they had then nobody knows any more.
    """
    from dmm_ebpf.rd.director.rundir import RunDir
    from dmm_ebpf.rd.policy.routes_file import stamp_of

    state = RunDir(instance).load()
    known = {} if state is None else state.policy_files
    return [
        path
        for path, stamp in known.items()
        if (None if stamp is None else tuple(stamp)) != stamp_of(Path(path))
    ]


def live_routes(rd: Client) -> list[RouteRow]:
    """Those that stand beside the policy in force, without a fleet's."""
    return [row for row in routes_beside(rd) if row.live]


def routes_beside(rd: Client) -> list[RouteRow]:
    """All that stand beside the policy in force, one by one. To be asked last: the other routes,
    which nobody waits for, are left by ending the connection.
    """
    return list(itertools.takewhile(lambda row: row.live or row.fleet, rd.routes()))


def without(live: Iterable[RouteRow], new: Policy) -> Iterator[Change]:
    """The live routes that cannot stand beside another policy, and go with the one in force."""
    from dmm_ebpf.records.policy import Change

    for row in live:
        if not _stays(row, new):
            yield Change("-", "route", text_of(row))


def staying(live: Iterable[RouteRow], new: Policy) -> Maybe[int]:
    """How many live routes stand beside it, too; absent: none does."""
    from dmm_ebpf.records.record import ABSENT

    return sum(_stays(row, new) for row in live) or ABSENT


def _stays(row: RouteRow, new: Policy) -> bool:
    from dmm_ebpf.rd.policy.owning import stays

    return stays(row.table, row.stack, new)


def note_live(count: Maybe[int]) -> None:
    """How many live routes stay."""
    if count:
        output.note(f"live routes that stay beside it: {count}; see route show --live")


def print_live(live: Sequence[RouteRow]) -> None:
    """Live routes, as comments behind the policy, which still is one then."""
    if live:
        print("# live routes beside it, of which no file tells:")
    for row in live[:MAX_SHOWN]:
        print(units.clean(f"#   {text_of(row)}"))
    if len(live) > MAX_SHOWN:
        print(f"#   and {len(live) - MAX_SHOWN} more; see route show --live")


def print_changes(shown: Iterable[Change], more: int) -> None:
    """Differences, and how many there are beyond."""
    for one in shown:
        print(units.clean(str(one)))
    if more:
        output.note(f"and {more} differences more")


def in_force(rd: Client) -> Policy:
    """An observer's is an empty one. Routes files are read as they are now. DmmError: it cannot be
    read again.
    """
    from dmm_ebpf.rd.policy import parse as policies

    shown = rd.policy_show()
    path = Path(shown.path or "no policy")
    try:
        return policies.parse(shown.text or "", source=str(path), base=path.parent)
    except PolicyError as refused:
        raise DmmError(
            f"read the policy in force of instance {rd.instance} again",
            why=f"{refused.what.removeprefix('accept ')}: {refused.why}",
            hint=refused.hint,
        ) from None


def policy_schema(*, as_json: bool) -> None:
    """Print the JSON Schema; indented, since it is a file to be kept, unless for a program."""
    from dmm_ebpf.rd.policy.schema import schema

    if as_json:
        output.print_json(schema())
    else:
        print(to_json(schema(), indented=True))


def policy_import(
    dmm: Path | None,
    modules: Path | None,
    libvma: Path | None,
    onload: Path | None,
    mptcpize: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print the policy that the files of DMM, libvma, Onload or mptcpize mean; what is left out
    goes to standard error. Raises PolicyError.
    """
    from dmm_ebpf.rd.policy import parse as policies
    from dmm_ebpf.rd.policy.from_dmm import import_dmm
    from dmm_ebpf.rd.policy.from_libvma import import_libvma
    from dmm_ebpf.rd.policy.from_mptcpize import import_mptcpize
    from dmm_ebpf.rd.policy.from_onload import import_onload
    from dmm_ebpf.records.policy import Imported

    if [dmm, libvma, onload, mptcpize].count(None) != 3 or (modules and not dmm):
        hint = "name one of --dmm, --libvma, --onload and --mptcpize; --modules goes with --dmm"
        raise UsageError("import a policy", why="it is not clear from which file", hint=hint)
    if dmm is not None:
        text = policies.read(dmm, "DMM's file")
        beside = policies.read(modules, "DMM's file") if modules else ""
        found = import_dmm(text, beside, str(dmm), str(modules or ""))
    elif libvma is not None:
        found = import_libvma(policies.read(libvma, "libvma's file"), str(libvma))
    elif onload is not None:
        found = import_onload(policies.read(onload, "Onload's file"), str(onload))
    elif mptcpize is not None:
        found = import_mptcpize(policies.read(mptcpize, "mptcpize's file"), str(mptcpize))
    policies.parse(found.text, source="the policy made of it", base=Path())
    if as_json:
        output.print_json(Imported(found.text, list(found.left)))
        return
    for one in found.left:
        output.note(f"not carried over: {one}")
    sys.stdout.write(found.text)
