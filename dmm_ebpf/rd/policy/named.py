# SPDX-License-Identifier: Apache-2.0
"""Named sets: what stands in the place of prefixes, an nft set or a hostname, whose elements change
while the policy stays. Pure.

What they have only the host that applies the policy can tell (rd/director/sets.py); there their
elements stand in for prefixes (routes.py, with_elements()).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from dmm_ebpf.rd.policy import hostnames, nftsets
from dmm_ebpf.rd.policy.hostnames import HostName, parse_host
from dmm_ebpf.rd.policy.nftsets import SetName, parse_set
from dmm_ebpf.rd.policy.shape import any_of, shape_of, takes
from dmm_ebpf.rd.policy.values import Prefix, parse_prefix

MAX_NAMED = 64  # of one policy: each is read by itself

Named = SetName | HostName
Contents = Mapping[Named, tuple[Prefix, ...]]


class Edit(NamedTuple):
    """What a set has besides, and what it has no more."""

    put: Collection[Prefix]
    drop: Collection[Prefix]


def edits(before: Contents, after: Contents) -> dict[Named, Edit]:
    """What makes after of before, of each set that it changes: takes as long as the sets are."""
    found: dict[Named, Edit] = {}
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name, ()), after.get(name, ())
        if was != now:
            had, has = dict.fromkeys(was).keys(), dict.fromkeys(now).keys()
            found[name] = Edit(has - had, had - has)
    return found


@takes(any_of(shape_of(parse_prefix), shape_of(parse_set), shape_of(parse_host)))
def parse_prefixes(text: str) -> tuple[Prefix | Named, ...]:
    """What text names: prefixes, or a set of such. ValueRefusedError."""
    if text.startswith(nftsets.MARK):
        return (parse_set(text),)
    if text.startswith(hostnames.MARK):
        return (parse_host(text),)
    return parse_prefix(text)
