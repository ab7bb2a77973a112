# SPDX-License-Identifier: Apache-2.0
"""What a stack process may say: the shape of every answer, checked before anybody uses it.

A stack process reads packets of strangers, so the Resource Director takes it for a stranger too: an
answer that is not exactly what was asked for is an AnswerError, and its process is to be ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dmm_ebpf.errors import DmmError, from_wire

MAX_STATS = 256
MAX_NICS = 16
_TEXT = 300  # characters of a sentence
_NUMBERS = ("connections", "in_use", "max_connections", "memory_bytes", "memory_limit_bytes")
_INFO = {"pid", "xsk_mtu", "own_user", "landlock", "zerocopy", "sums", "no_sockets"}
_U64 = 1 << 64


def plugin_keys(fits: str) -> tuple[str, str, str]:
    """Of statistics: how many faults the plug-ins of one place (kit.names.SEAMS) had, of how many
    connections, and the first one in a sentence.
    """
    front = "plugin" if fits == "congestion" else fits
    return f"{front}_faults", f"{front}_connections", f"{front}_fault"


# What statistics may have besides numbers
_SENTENCES = frozenset(plugin_keys(fits)[2] for fits in ("congestion", "transport"))


class AnswerError(DmmError):
    """No stack process of ours answers so."""


def plain(text: object, most: int = _TEXT) -> str:
    """Text of a stranger as it may stand in a log or on a terminal: one line,
    printable, not long.
    """
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def _numbers(values: Sequence[Any], below: int = _U64) -> bool:
    return set(map(type, values)) <= {int} and (
        not values or (min(values) >= 0 and max(values) < below)
    )


def _texts(values: Sequence[Any], most: int) -> bool:
    if not set(map(type, values)) <= {str}:
        return False
    return all(len(v) <= most and v.isascii() and v.isprintable() for v in set(values))


def _u16(values: Sequence[Any]) -> bool:
    return _numbers(values, 1 << 16)


def _state(values: Sequence[Any]) -> bool:
    return _numbers(values, 16)


def _address(values: Sequence[Any]) -> bool:
    return _texts(values, 45)


# What is asked of each connection, and what it may be
COLUMNS: Mapping[str, Callable[[Sequence[Any]], bool]] = {
    "laddr": _address,
    "lport": _u16,
    "raddr": _address,
    "rport": _u16,
    "outer_state": _state,
    "srtt_us": _numbers,
    "retransmits": _numbers,
    "copies": _numbers,
    "copies_needed": _numbers,
    "parity": _numbers,
    "peer_repaired": _numbers,
    "repaired": _numbers,
    "cwnd_bytes": _numbers,
    "pacing_Bps": _numbers,
    "congestion": lambda values: _texts(values, 15),
    "transport": lambda values: _texts(values, 15),
    "agreed": lambda values: _texts(values, 40),
    "agreement": lambda values: _texts(values, 15),
}


def _slots(values: Mapping[Any, Any]) -> bool:
    """Whether they are of NICs."""
    return set(values) <= {str(slot) for slot in range(MAX_NICS)}


def _answers(values: Any) -> bool:
    """Whether they are a yes or a no for each of some NICs."""
    return (
        isinstance(values, dict)
        and len(values) <= MAX_NICS
        and _slots(values)
        and set(map(type, values.values())) <= {bool}
    )


def _info(result: Any) -> bool:
    """What a process is: see StackProcess.info()."""
    if not isinstance(result, dict) or set(result) != _INFO:
        return False
    no_sockets = result["no_sockets"]
    return (
        _numbers([result["pid"], result["landlock"], result["xsk_mtu"]], 1 << 31)
        and type(result["own_user"]) is bool
        and _answers(result["zerocopy"])
        and _answers(result["sums"])
        and isinstance(no_sockets, dict)
        and len(no_sockets) <= MAX_NICS
        and _slots(no_sockets)
        and _texts(list(no_sockets.values()), _TEXT)
    )


def _stats(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    return (
        len(result) <= MAX_STATS
        and _texts(list(result), 64)
        and _texts([result.get(name, "") for name in _SENTENCES], _TEXT)
        and _numbers([value for name, value in result.items() if name not in _SENTENCES])
        and all(name in result for name in _NUMBERS)
    )


def _connections(result: Any) -> bool:
    """A list of rows, each with a value for every one of COLUMNS."""
    if not isinstance(result, list) or not set(map(type, result)) <= {list}:
        return False
    if not set(map(len, result)) <= {len(COLUMNS)}:
        return False
    return all(
        check(column)
        for check, column in zip(COLUMNS.values(), zip(*result, strict=True), strict=False)
    )


_FAULT_NUMBERS = ("delay_us", "seed", "seen", "no_room")


def _fault_row(row: Any) -> bool:
    """See faultplans.told()."""
    if not isinstance(row, dict) or set(row) != {
        *_FAULT_NUMBERS,
        "leg",
        "direction",
        "rules",
        "done",
    }:
        return False
    rules, done = row["rules"], row["done"]
    return (
        row["leg"] in {"inner", "outer"}
        and row["direction"] in {"in", "out"}
        and _numbers([row[name] for name in _FAULT_NUMBERS])
        and all(isinstance(some, dict) and _texts(list(some), 16) for some in (rules, done))
        and _numbers(list(done.values()))
        and all(
            isinstance(rule, dict) and _texts(list(rule), 16) and _numbers(list(rule.values()))
            for rule in rules.values()
        )
    )


def _faults(result: Any) -> bool:
    return isinstance(result, list) and len(result) <= 4 and all(map(_fault_row, result))


def _nothing(result: Any) -> bool:
    return result is None


_SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "ping": _info,
    "stats": _stats,
    "connections": _connections,
    "faults": _faults,
    "configure": _nothing,
    "plugin": _nothing,
    "stop": _nothing,
}


def nonsense(label: str, method: str, why: str) -> AnswerError:
    """The error for an answer that is none."""
    return AnswerError(f"ask stack {label} for {method}", why=why)


def result_of(label: str, method: str, number: int, answer: Any) -> Any:
    """The result in an answer to request number. Raises the DmmError that the process answers
    with, or AnswerError.
    """
    if (
        not isinstance(answer, dict)
        or answer.get("id") != number
        or type(answer.get("ok")) is not bool
    ):
        raise nonsense(label, method, "what came back is no answer to it")
    if not answer["ok"]:
        error = answer.get("error")
        raise from_wire({k: plain(v) for k, v in error.items()} if isinstance(error, dict) else {})
    result: Any = answer.get("result")
    if method in _SHAPES and not _SHAPES[method](result):
        raise nonsense(label, method, "the answer has not the form that it must have")
    if method == "connections":
        return [dict(zip(COLUMNS, row, strict=True)) for row in result]
    return result
