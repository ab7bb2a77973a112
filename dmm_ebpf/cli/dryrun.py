# SPDX-License-Identifier: Apache-2.0
"""What `policy apply --dry-run` does: asks of a policy all that `policy apply` would, on this host,
and tells what would change.

Of the director it asks only what is in force. What nobody can tell without doing it is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.cli import actions, output, policytools, tables
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.hostcheck import HostFacts
    from dmm_ebpf.rd.director.reading import Readings
    from dmm_ebpf.rd.policy.model import Policy


def policy_dry_run(file: Path, instance: str, *, as_json: bool) -> None:
    """Print in what the instance's policy would change. PolicyError: it would be refused."""
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.rd.director import hostcheck, sets
    from dmm_ebpf.rd.policy.difference import difference
    from dmm_ebpf.rd.policy.ids import IdSpace
    from dmm_ebpf.rd.policy.plugins import check_plugins
    from dmm_ebpf.records.policy import Tried
    from dmm_ebpf.records.record import ABSENT

    new = actions.load_policy(file)
    with client.Client(instance) as rd:
        facts, readings = _facts(rd.status().pid, new)
    unread = check_plugins(new, hostcheck.served(new))
    for wrong in sets.errors(new, readings):
        raise wrong
    new, listed = sets.filled(new, readings), sets.rows(new, readings)
    pending = hostcheck.pending(new, facts.compile(new, IdSpace()))
    with client.Client(instance) as rd:
        old, live = policytools.in_force(rd), policytools.live_routes(rd)
    found = itertools.chain(difference(old, new), policytools.without(live, new))
    shown = list(itertools.islice(found, policytools.MAX_SHOWN))
    more = sum(1 for _ in found)
    warned, more_warnings = actions.warnings_of(new.as_written)
    untried = [*unread, *_untried(old, new)]
    counts = actions.policy_counts(new)
    if as_json:
        output.print_json(
            Tried(
                instance=instance,
                equal=not shown,
                changes=shown,
                more=more,
                **counts,
                pending=pending,
                warnings=warned,
                more_warnings=more_warnings,
                not_checked=untried,
                sets=listed or ABSENT,
                live_routes=policytools.staying(live, new),
            )
        )
        return
    policytools.print_changes(shown, more)
    what = tables.count(len(shown) + more, "differences") if shown else "no difference"
    print(f"would be applied to instance {instance}: {what}; {actions.counts_text(**counts)}")
    policytools.note_live(policytools.staying(live, new))
    actions.print_warnings(warned, more_warnings)
    for entry in pending:
        output.note(f"{tables.pending_text(entry)}, which does not exist")
    tables.note_sets(listed)
    for sentence in untried:
        output.note(f"not checked: {units.clean(sentence)}")


def _facts(director: int | None, policy: Policy) -> tuple[HostFacts, Readings]:
    """Of the network namespace that the instance's director is in, and what sets have there."""
    from dmm_ebpf.hal.netns import NetNS
    from dmm_ebpf.rd.director import sets
    from dmm_ebpf.rd.director.hostcheck import HostFacts

    with NetNS.from_arg(director) as netns:
        return netns.run_in(lambda: (HostFacts.read(), sets.read_all(policy.sets)))


def _untried(old: Policy, new: Policy) -> Iterator[str]:
    """What applying the policy would find out, and nothing else does."""
    from dmm_ebpf.rd.director.hostcheck import served

    if stacks := ", ".join(served(new)):
        yield f"whether the processes of {stacks} can start, and have their devices"
    for path in _resolved(old) & _resolved(new):
        yield f"whether the routes in {path} have changed since they came in force"


def _resolved(policy: Policy) -> set[Path]:
    """Its routes files, however they were named."""
    return {path.resolve() for path in policy.files}
