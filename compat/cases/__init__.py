# SPDX-License-Identifier: Apache-2.0
"""Every case of the table, by group, in the order of the page."""

from __future__ import annotations

from compat.case import Case
from compat.cases import devices, filters, marks, nat, programs, queueing, routing, tools, tracking

CASES: tuple[Case, ...] = (
    *filters.CASES,
    *marks.CASES,
    *tracking.CASES,
    *nat.CASES,
    *routing.CASES,
    *queueing.CASES,
    *devices.CASES,
    *tools.CASES,
    *programs.CASES,
)

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(case.group for case in CASES))
