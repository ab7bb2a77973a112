# SPDX-License-Identifier: Apache-2.0
"""Labels of hosts, and selectors of hosts by label: so one policy serves a fleet.

Owns their text forms. A label is NAME=VALUE; every host has the label "host", its name. A selector
is for example "role=edge,site=fra|ams*": all that stand between commas must hold, one of the values
between bars is enough, and * and ? stand for others. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dmm_ebpf.rd.policy.shape import spelled, takes
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown

Labels = Mapping[str, str]
MAX_LABELS = 64
MAX_SELECTOR = 1024  # characters

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9_])?")
_VALUE = re.compile(r"[A-Za-z0-9_.:@/-]{1,253}")
_PATTERN = re.compile(r"[A-Za-z0-9_.:@/*?-]{1,253}")
_HINT = 'expected for example "role=edge,site=fra|ams"'


@dataclass(frozen=True)
class Selector:
    """wants: names of labels, and the patterns of which one has to fit."""

    text: str
    wants: tuple[tuple[str, tuple[str, ...]], ...]

    def holds(self, labels: Labels) -> bool:
        """Whether a host with these labels is meant."""
        return all(
            name in labels and any(fnmatchcase(labels[name], pattern) for pattern in patterns)
            for name, patterns in self.wants
        )

    def __str__(self) -> str:
        return self.text


_WANT = rf"\s*{_LABEL.pattern}={_PATTERN.pattern}(?:\|{_PATTERN.pattern})*\s*"


@takes(
    {
        "description": "Hosts by their labels: role=edge,site=fra|ams*",
        **spelled(rf"{_WANT}(?:,{_WANT})*", most=MAX_SELECTOR),
    }
)
def parse_selector(value: object) -> Selector:
    """The selector in a text. Raises ValueRefusedError."""
    if not isinstance(value, str) or not value or len(value) > MAX_SELECTOR:
        raise ValueRefusedError(f"{shown(value)} selects no hosts", _HINT)
    wants = []
    for part in value.split(","):
        name, equals, rest = part.strip().partition("=")
        patterns = tuple(rest.split("|"))
        if not equals or not _LABEL.fullmatch(name) or not all(map(_PATTERN.fullmatch, patterns)):
            raise ValueRefusedError(f"{shown(part)} selects no hosts", _HINT)
        wants.append((name, patterns))
    return Selector(value, tuple(wants))


@takes(
    {
        "description": "The labels of this host",
        "type": "object",
        "maxProperties": MAX_LABELS,
        "propertyNames": spelled(_LABEL.pattern),
        "additionalProperties": spelled(_VALUE.pattern),
    }
)
def parse_labels(value: object) -> dict[str, str]:
    """The labels of a host, from a table of texts. Raises ValueRefusedError."""
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        raise ValueRefusedError(
            f"{shown(value)} is no table of labels", 'expected for example role = "edge"'
        )
    for name, text in value.items():
        if not isinstance(name, str) or not _LABEL.fullmatch(name):
            raise ValueRefusedError(
                f"{shown(name)} cannot name a label", "use letters, digits, and _ . / - within"
            )
        if not isinstance(text, str) or not _VALUE.fullmatch(text):
            raise ValueRefusedError(
                f"{shown(text)} is no value of the label {name}",
                "use 1 to 253 letters, digits, and _ . : @ / -",
            )
    return dict(value)


def parse_label(text: str) -> tuple[str, str]:
    """NAME=VALUE. Raises ValueRefusedError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueRefusedError(f"{shown(text)} is no label", "expected NAME=VALUE")
    return next(iter(parse_labels({name: value}).items()))
