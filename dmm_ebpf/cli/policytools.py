# SPDX-License-Identifier: Apache-2.0
"""What `policy test`, `policy diff`, `policy schema` and `policy import` do: a policy held against
what is expected of it and against the one in force, what editors hold it against, and one made of
another project's files.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.cli import actions, gather, output
from dmm_ebpf.errors import DmmError, PolicyError, UsageError
from dmm_ebpf.records.record import to_json
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.policy import Change, Held

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


def policy_diff(file: Path, instance: str | None, *, as_json: bool) -> None:
    """Print in what the file's policy differs from the one in force. Raises PolicyError; SystemExit
    with code 1 when there is a difference.
    """
    from dmm_ebpf.rd.policy.difference import difference
    from dmm_ebpf.records.policy import Compared

    new = actions.load_policy(file)
    name = gather.the_instance(instance)
    found = difference(in_force(name), new)
    shown = list(itertools.islice(found, MAX_SHOWN))
    more = sum(1 for _ in found)
    changed = changed_files(name)
    if as_json:
        output.print_json(Compared(name, not shown and not changed, shown, more, changed))
    else:
        print_changes(shown, more)
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


def print_changes(shown: Iterable[Change], more: int) -> None:
    """Differences, and how many there are beyond."""
    for one in shown:
        print(units.clean(str(one)))
    if more:
        output.note(f"and {more} differences more")


def in_force(instance: str) -> Policy:
    """An observer's is an empty one. Routes files are read as they are now. DmmError: it cannot be
    read again.
    """
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.rd.policy import parse as policies

    with client.Client(instance) as rd:
        shown = rd.policy_show()
    path = Path(shown.path or "no policy")
    try:
        return policies.parse(shown.text or "", source=str(path), base=path.parent)
    except PolicyError as refused:
        raise DmmError(
            f"read the policy in force of instance {instance} again",
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
    *,
    as_json: bool,
) -> None:
    """Print the policy that the files of DMM, libvma or Onload mean; what is left out goes to
    standard error. Raises PolicyError.
    """
    from dmm_ebpf.rd.policy import parse as policies
    from dmm_ebpf.rd.policy.from_dmm import import_dmm
    from dmm_ebpf.rd.policy.from_libvma import import_libvma
    from dmm_ebpf.rd.policy.from_onload import import_onload
    from dmm_ebpf.records.policy import Imported

    if [dmm, libvma, onload].count(None) != 2 or (modules and not dmm):
        hint = "name one of --dmm, --libvma and --onload; --modules goes with --dmm"
        raise UsageError("import a policy", why="it is not clear from which file", hint=hint)
    if dmm is not None:
        text = policies.read(dmm, "DMM's file")
        beside = policies.read(modules, "DMM's file") if modules else ""
        found = import_dmm(text, beside, str(dmm), str(modules or ""))
    elif libvma is not None:
        found = import_libvma(policies.read(libvma, "libvma's file"), str(libvma))
    elif onload is not None:
        found = import_onload(policies.read(onload, "Onload's file"), str(onload))
    policies.parse(found.text, source="the policy made of it", base=Path())
    if as_json:
        output.print_json(Imported(found.text, list(found.left)))
        return
    for one in found.left:
        output.note(f"not carried over: {one}")
    sys.stdout.write(found.text)
