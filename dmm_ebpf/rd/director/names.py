# SPDX-License-Identifier: Apache-2.0
"""What numbers in an instance's maps are called: stacks, tables, rules, routes and cgroups."""

from __future__ import annotations

from collections.abc import Callable

from dmm_ebpf.abi import C
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.policy.compile import Labels
from dmm_ebpf.rd.policy.ids import IdSpace

_MOST_PATHS = 4096


class Names:
    """Of one instance. A number that nothing is known of any more stays one."""

    def __init__(
        self,
        ids: Callable[[], IdSpace],
        labels: Callable[[int], Labels | None],
        *,
        mark: str = "",
        live: Callable[[int], str] = lambda _: "",
    ) -> None:
        """ids: those of now; labels: the names that a generation of the policy has given, if they
        are known; mark: before a rule or a route that stays a number; live: what a live route's
        number is called, if that is known.
        """
        self._ids, self._labels, self._mark, self._live = ids, labels, mark, live
        self._paths: dict[int, str | None] = {}

    def stack(self, stack_id: int) -> str:
        """See class."""
        return self._ids().stack_name(stack_id) or f"#{stack_id}"

    def table(self, table: int) -> str | None:
        """None: no rule had a route."""
        return self._ids().table_name(table) or None

    def rule(self, generation: int, rule: int) -> str | None:
        """rule: from 1; None: no rule."""
        if not rule:
            return None
        labels = self._labels(generation)
        return labels.rule_text(rule - 1) if labels else self._number(rule, generation)

    def route(self, generation: int, route: int) -> str | None:
        """None: no route."""
        if route == C.DMM_ROUTE_NONE or not generation:
            return None
        if route & C.DMM_ROUTE_LIVE:
            number = route & ~C.DMM_ROUTE_LIVE
            return self._live(route) or f"live route {self._mark}{number}"
        labels = self._labels(generation)
        text = labels.route_text(route) if labels else ""
        return text or self._number(route, generation)

    def _number(self, number: int, generation: int) -> str:
        return f"{self._mark}{number} of generation {generation}"

    def cgroup(self, cgroup_id: int) -> str | None:
        """Its path; None: it is gone, or none."""
        if cgroup_id not in self._paths:
            if len(self._paths) > _MOST_PATHS:
                self._paths.clear()
            self._paths[cgroup_id] = cgroups.path_of(cgroup_id) if cgroup_id else None
        return self._paths[cgroup_id]
