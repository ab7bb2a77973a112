# SPDX-License-Identifier: Apache-2.0
"""A loaded transport as connections have it; and what one in Python is told, and says.

A Python transport moves no byte: it is asked (endask.h), and says what has arrived, what is taken
of a segment, and what the next packet is. Numbers of bytes count from the first of a stream;
positions (una, nxt) are those of end.h: 1 is the first byte's, 0 what opens the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from dmm_ebpf.kit.bridge import PATIENCE_S, Asked, Guarded, Watched
from dmm_ebpf.kit.load import TRANSPORT_METHODS
from dmm_ebpf.kit.names import Plugin

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16  # enum tcp_flag of wire.h
_NEVER = (1 << 64) - 1
_U32 = (1 << 32) - 1
_WANTS_BYTES = 128 << 10
_LOST_RESET, _LOST_GAVE_UP = 1, 2  # enum end_ask_lost
_TOLD = (
    *("now_ns", "head", "tail", "received", "room", "first_number", "mss", "syn_retries"),
    *("retries", "family"),
)


class Phase(IntEnum):
    """enum end_phase of end.h."""

    CLOSED = 0
    LEAVING = 1
    ASKING = 2
    ASKED = 3
    ANSWERING = 4
    OPEN = 5
    WAITING = 6


@dataclass(frozen=True)
class Segment:
    """One that came, or is to go: sequence numbers as on the wire, modulo 2**32; mss 0: no such
    option. length bytes of payload; of one that is to go, those of the stream from byte first on.
    """

    flags: int
    seq: int
    ack: int = 0
    wnd: int = 0
    mss: int = 0
    first: int = 0
    length: int = 0
    payload: bytes = b""  # of one that came


class End:
    """What a transport may know of its end, told anew at every call, and what it may set: una, nxt,
    phase, deadline_ns (None: none), peer_finished.
    """

    now_ns: int
    head: int  # bytes of the stream: below it all has arrived,
    tail: int  # and from here on there are none yet
    received: int  # bytes that were taken in
    room: int  # how many more may be
    finished: bool  # the stream ends at tail
    first_number: int  # for a sequence number that cannot be guessed
    mss: int  # what the path has room for in a segment
    syn_retries: int
    retries: int
    family: int  # 2: IPv4, 10: IPv6
    una: int
    nxt: int
    phase: Phase
    deadline_ns: int | None
    peer_finished: bool

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def ready(self) -> None:
        """It may have something to send: output() is asked soon."""
        self._said["ready"] = 1

    def take(self, start: int, length: int) -> None:
        """So much of the segment's payload is the next in order."""
        self._said |= {"take_from": start, "take_len": length}

    def reset(self, errno: int) -> None:
        """The peer has ended the connection."""
        self._said |= {"lost": _LOST_RESET, "error": errno}

    def give_up(self) -> None:
        """The peer was asked long enough."""
        self._said["lost"] = _LOST_GAVE_UP


class Transport(Guarded):
    """A transport of outer ends."""

    GOES = (
        "its connection has ended",
        "it is not called any more: its connections have ended, and new ones go by tcp",
    )

    @property
    def ops(self) -> Any:
        """See Guarded."""
        return self.guard.ops


class NativeTransport(Watched, Transport):
    """One that is a shared object."""

    def end_hung(self) -> None:
        """See Watched."""
        self._lib.end_native_look(self.guard)


class TransportBridge(Asked, Transport):
    """One in Python: an object of its class for each connection."""

    FRONT = "end_asker_"
    METHODS = TRANSPORT_METHODS

    def __init__(self, plugin: Plugin, made: type, ffi: Any, lib: Any) -> None:
        has = 1 << len(TRANSPORT_METHODS)
        for number, name in enumerate(TRANSPORT_METHODS):
            has |= callable(getattr(made, name, None)) << number
        wants = getattr(made, "wants_bytes", _WANTS_BYTES)
        guard = lib.end_asker_create(plugin.short.encode(), has, wants, int(PATIENCE_S * 1e9))
        if guard == ffi.NULL:
            raise MemoryError
        super().__init__(plugin, made, guard, ffi, lib)

    def _in_use(self) -> bool:
        return bool(self._lib.end_asker_ends(self.guard))

    def _answer(self, ask: Any) -> None:
        number, handle = ask.type, ask.handle
        name = self.METHODS[number]
        if name == "open":
            self._objects[handle] = self._class(), End()
        made, end = self._objects[handle]
        self._tell(ask, end)
        method = getattr(made, name)
        came = (self._came(ask),) if name in {"open", "input"} else ()
        said = method(end, *came)
        answer = _of(end)
        wrong = [key for key, value in answer.items() if not _is_number(value)]
        if wrong:
            self._fail(ask, f"{name} set {wrong[0]} to what is no number")
            return
        for key, value in answer.items():
            setattr(ask.answer, key, value)
        ask.answer.next.there = said is not None and name in {"output", "reset"}
        if ask.answer.next.there:
            self._put(ask, name, said)

    def _tell(self, ask: Any, end: End) -> None:
        for name in _TOLD:
            setattr(end, name, getattr(ask, name))
        end.finished = bool(ask.finished)
        answer = ask.answer
        end.una, end.nxt, end.phase = answer.una, answer.nxt, Phase(answer.phase)
        end.deadline_ns = None if answer.deadline_ns == _NEVER else answer.deadline_ns
        end.peer_finished = bool(answer.peer_finished)
        end._said = {}

    def _came(self, ask: Any) -> Segment | None:
        s = ask.came
        if not s.there:
            return None
        payload = bytes(self._ffi.buffer(ask.payload, s.len))
        return Segment(s.flags, s.seq, s.ack, s.wnd, s.mss, 0, s.len, payload)

    def _put(self, ask: Any, name: str, said: Any) -> None:
        fields = ("flags", "seq", "ack", "wnd", "mss", "first", "length")
        values: dict[str, Any] = {field: getattr(said, field, None) for field in fields}
        if not all(map(_is_number, values.values())):
            self._fail(ask, f"{name} returned what is no segment")
            return
        put = ask.answer.next
        put.seq, put.ack = values["seq"] & _U32, values["ack"] & _U32
        put.flags, put.wnd, put.mss = (
            min(values[field], _U32) for field in ("flags", "wnd", "mss")
        )
        setattr(put, "from", values["first"])
        put.len = min(values["length"], _U32)


def _of(end: End) -> Mapping[str, Any]:
    """What a transport has said, by the names of struct end_answer."""
    deadline = _NEVER if end.deadline_ns is None else end.deadline_ns
    return end._said | {
        "una": end.una,
        "nxt": end.nxt,
        "phase": end.phase,
        "deadline_ns": deadline,
        "peer_finished": int(bool(end.peer_finished)),
    }


def _is_number(value: Any) -> bool:
    """One that C has room for; the narrower fields are looked at there."""
    return isinstance(value, int) and 0 <= value <= _NEVER
