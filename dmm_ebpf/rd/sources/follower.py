# SPDX-License-Identifier: Apache-2.0
"""What an instance follows a fleet's policy as."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy.hosts import Labels, parse_label
from dmm_ebpf.rd.policy.values import ValueRefusedError

if TYPE_CHECKING:
    from dmm_ebpf.central.place import Place


@dataclass(frozen=True)
class Follower:
    """host: the name in listings, unique in the fleet. labels: of this host, with "host"."""

    place: Place
    host: str
    labels: Labels


def follower(place: Place, host: str | None, labels: Sequence[str]) -> Follower:
    """Of NAME=VALUE each; host None: as hostname(1) says it. Raises UsageError."""
    name = host or socket.gethostname()
    made: dict[str, str] = {}
    for text in [f"host={name}", *labels]:
        try:
            key, value = parse_label(text)
        except ValueRefusedError as error:
            raise UsageError("label this host", why=error.why, hint=error.hint) from None
        if made.get(key, value) != value or (key in made and key != "host"):
            raise UsageError("label this host", why=f"the label {key} is given twice")
        made[key] = value
    if "/" in name:
        raise UsageError("label this host", why=f"{name} cannot be a host's name")
    return Follower(place, name, made)
