# SPDX-License-Identifier: Apache-2.0
"""Other elements of the named sets of the policy in force, beside it: what a million routes were
compiled to stays, and nobody looks at it.

What rules name by a set is in the rules, and more than have room beside a policy are compiled into
it: then the policy is put in force anew (instance.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dmm_ebpf.rd.director import routechange, sync
from dmm_ebpf.rd.director.routechange import Changing
from dmm_ebpf.rd.policy.elements import MOST_BESIDE, Elements
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.named import Contents, Edit, Named, edits
from dmm_ebpf.threads import in_thread


async def change(
    here: Changing, policy: Policy, contents: Contents, told: Mapping[Named, Edit] | None = None
) -> None:
    """Put in force that the sets of policy have these. Nothing is done where that one is not in
    force any more. told: all that makes them of what they have now, where that is known. DmmError:
    it cannot be; then nothing has changed.
    """
    if here.policy is not policy:
        return
    made = Elements(policy.as_written.tables, contents)
    if policy.beside is None or len(made) > MOST_BESIDE or _are_in_rules(policy, contents):
        await here.apply(await in_thread(policy.with_elements, contents))
        return
    before = sync.current_generation(here.maps)
    what = edits(policy.elements, contents) if told is None else told
    generation = await here.live.put_elements(policy, what, before)
    routechange.switch(here, before, generation)
    here.took(replace(policy, elements=contents, beside=made))


def _are_in_rules(policy: Policy, contents: Contents) -> bool:
    """Whether rules name a set that has changed."""
    named = (one for rule in policy.as_written.rules for one in rule.source_sets)
    return any(contents.get(one) != policy.elements.get(one) for one in named)
