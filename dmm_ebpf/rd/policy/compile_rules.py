# SPDX-License-Identifier: Apache-2.0
"""From rules to the checks of rules[] (bpf/abi.h): what is a list in a policy is one value in each.

Owns the order of checks, which listings and whoever changes one later know it by. A rule has one
check for each way in which its lists can be so, and before them one for each way in which an
exception of its `not` can be: what matches that passes over the rest of the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.cgroupglob import globs_of
from dmm_ebpf.rd.policy.rule import Conditions, Rule
from dmm_ebpf.rd.policy.values import IdRange

MAX_CHECKS = int(C.DMM_MAX_CHECKS)


@dataclass(frozen=True)
class Check:
    """One of rules[]. rule: its index in the policy; wanted: one value of each condition; skip:
    not 0 where it excepts, then how many checks of the rule come behind it.
    """

    rule: int
    wanted: Mapping[str, Any]
    skip: int = 0


def checks(rules: Sequence[Rule]) -> Iterator[Check]:
    """All of them, in order."""
    for index, rule in enumerate(rules):
        excepted = [wanted for one in rule.excepted for wanted in _ways(one)]
        own = list(_ways(rule))
        left = len(excepted) + len(own)
        for wanted in excepted:
            left -= 1
            yield Check(index, wanted, left)
        for wanted in own:
            yield Check(index, wanted)


def globs_in(made: Sequence[Check]) -> tuple[str, ...]:
    """The patterns of cgroups that they name, by their bits in struct dmm_globbed."""
    return globs_of(one.wanted["cgroup"] for one in made if "cgroup" in one.wanted)


def _ways(conditions: Conditions) -> Iterator[dict[str, Any]]:
    asked = dict(conditions.asked())
    for key in ("uid", "gid"):
        if key in asked:
            asked[key] = tuple(IdRange(*span) for span in _joined(asked[key]))
    if "local_port" in asked:
        asked["local_port"] = tuple(_joined(asked["local_port"]))
    for values in itertools.product(*asked.values()):
        yield dict(zip(asked, values, strict=True))


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few spans as there can be."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def count_checks(rule: Rule) -> int:
    """How many a rule has; of lists as long as a policy may have them, without making them."""
    total = 0
    for one in (rule, *rule.excepted):
        ways = 1
        for key, values in one.asked():
            ways *= len(_joined(values)) if key in ("uid", "gid", "local_port") else len(values)
        total += ways
    return total
