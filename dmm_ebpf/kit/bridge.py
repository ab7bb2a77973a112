# SPDX-License-Identifier: Apache-2.0
"""A loaded congestion control as connections have it: its guard, its faults, and, of Python, the
thread that computes it. transport.py has the same of transports.

A Python control sees no packet. It is asked by what runs connections (ask.h), one question at a
time, and answers from a thread of its own, so that no loop of its can hold connections for
longer than PATIENCE_S.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from abc import ABC, abstractmethod
from struct import Struct
from typing import Any, NamedTuple

from dmm_ebpf.kit.load import METHODS, described
from dmm_ebpf.kit.names import Plugin

PATIENCE_S = 0.25
_SAFE = "cubic"
_MOST = 1 << 63
_CODES = {"uint64_t": "Q", "uint32_t": "I"}
# What a question says of struct cc, in the order of struct cc_ask
_TOLD = (
    "cwnd_bytes", "pacing_Bps", "spare_bytes", "inflight_bytes", "srtt_ns", "min_rtt_ns",
    "spare", "mss", "in_recovery",
)  # fmt: skip


def _layout(ffi: Any, struct: str, names: tuple[str, ...]) -> Struct:
    """How such fields of C's are read, which follow each other."""
    fields = dict(ffi.typeof(struct).fields)
    one = Struct("=" + "".join(_CODES[fields[name].type.cname] for name in names))
    first, last = fields[names[0]], fields[names[-1]]
    if last.offset + ffi.sizeof(last.type) - first.offset != one.size:
        raise AssertionError(f"{struct} has something between {names[0]} and {names[-1]}")
    return one


class _LeftError(BaseException):
    """Raised inside a call that has taken too long."""


class Sample(NamedTuple):
    """What one ACK, or one batch of them, told: struct cc_sample of cc.h, field by field and
    in its units.
    """

    now_ns: int
    acked_bytes: int
    lost_bytes: int
    loss_delay_ns: int
    rtt_ns: int
    prior_inflight_bytes: int
    delivered_bytes: int
    prior_delivered_bytes: int
    interval_ns: int
    interval_delivered_bytes: int
    interval_lost_bytes: int
    tx_inflight_bytes: int
    app_limited: int
    ece: int
    in_order: int


class Window:
    """struct cc of cc.h: a control sets the first four, the others are told anew at every call."""

    __slots__ = (
        "cwnd_bytes",
        "in_recovery",
        "inflight_bytes",
        "min_rtt_ns",
        "mss",
        "pacing_Bps",
        "spare",
        "spare_bytes",
        "srtt_ns",
    )
    cwnd_bytes: float
    pacing_Bps: float  # noqa: N815
    spare: int
    spare_bytes: float
    mss: int
    in_recovery: int
    inflight_bytes: int
    srtt_ns: int
    min_rtt_ns: int


class Faults(NamedTuple):
    """What went wrong with a plug-in: how often, how many connections went on by another control,
    and the first time in a sentence; empty: never.
    """

    faults: int
    fallen: int
    sentence: str


class Guarded(ABC):
    """A plug-in, with its guard."""

    LOOK_S = PATIENCE_S  # between two calls of look()
    GOES = ("", "")  # what becomes of a connection after a fault, and of all after the last one

    def __init__(self, plugin: Plugin, guard: Any, ffi: Any, lib: Any) -> None:
        """guard: see load.load_native()."""
        self.plugin = plugin
        self.guard = guard
        self._ffi, self._lib = ffi, lib

    @property
    @abstractmethod
    def ops(self) -> Any:
        """What connections are given: const struct cc_ops *, or const struct end_ops *."""

    def faults(self) -> Faults:
        """So far."""
        guard = self.guard
        first = "".join(
            c if " " <= c <= "~" else "?"
            for c in self._ffi.string(guard.first).decode("utf-8", "replace")
        )
        goes = self.GOES[bool(guard.off)]
        sentence = f"{self.plugin.short}.{first}; {goes}" if first else ""
        return Faults(int(guard.faults), int(guard.fallen), sentence)

    @abstractmethod
    def start(self) -> None:
        """To be called before it has connections."""

    @abstractmethod
    def look(self) -> None:
        """To be called every LOOK_S: ends a call that nobody waits for any more."""

    def may_go(self) -> bool:
        """Whether it may be closed: no connection has it. A shared object stays."""
        return False

    @abstractmethod
    def close(self) -> None:
        """When no connection has it any more."""


class Control(Guarded):
    """A congestion control."""

    GOES = (
        f"its connection goes on by {_SAFE}",
        f"it is not called any more, and connections go on by {_SAFE}",
    )

    @property
    def ops(self) -> Any:
        """See Guarded."""
        return self._ffi.addressof(self.guard, "ops")


class Watched(Guarded):
    """A shared object, and a thread that ends calls of it that hang. Whoever else may want to look
    could be waiting for the connections that such a call holds.
    """

    def __init__(self, plugin: Plugin, guard: Any, ffi: Any, lib: Any) -> None:
        """See Guarded."""
        super().__init__(plugin, guard, ffi, lib)
        self._over = threading.Event()

    @abstractmethod
    def end_hung(self) -> None:
        """Ends a call that was there the last time, and still is."""

    def start(self) -> None:
        """Makes the thread."""
        threading.Thread(target=self._watch, name="dmm-plugin-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(self.LOOK_S):
            self.end_hung()

    def look(self) -> None:
        """Its own thread does."""

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()


class Native(Watched, Control):
    """One that is a shared object."""

    def end_hung(self) -> None:
        """See Watched."""
        self._lib.cc_native_look(self.guard)


class Asked(Guarded):
    """A Python class, and the thread that calls its objects: one of its own, which start() makes,
    or any that runs work().
    """

    FRONT = ""  # with what the functions of its asker begin in C
    METHODS: tuple[str, ...] = ()  # by the numbers of questions; behind them is release

    def __init__(self, plugin: Plugin, made: type, guard: Any, ffi: Any, lib: Any) -> None:
        """made: the class."""
        super().__init__(plugin, guard, ffi, lib)
        self._class = made
        self._objects: dict[int, Any] = {}
        self._busy = False
        self._thread = 0  # its ident
        self._ended = threading.Event()
        self._ended.set()

    def _call(self, name: str) -> Any:
        return getattr(self._lib, self.FRONT + name)(self.guard)

    def start(self) -> None:
        """Makes the thread."""
        threading.Thread(target=self.work, name="dmm-plugin", daemon=True).start()

    def look(self) -> None:
        """Interrupts a call that nobody waits for any more."""
        if self.guard.off and self._busy:
            # Takes effect in Python code; what is in C code goes on, and is in nobody's way.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(_LeftError)
            )

    def close(self) -> None:
        """Ends the thread, unless it is in a call that does not come back."""
        self._call("end")
        if not self._ended.is_set():
            self.look()
            self._ended.wait(PATIENCE_S)

    @abstractmethod
    def _in_use(self) -> bool:
        """Whether a connection has it."""

    def may_go(self) -> bool:
        """See Guarded."""
        return bool(self.guard.off) or not self._in_use()

    # -- in the thread --

    def work(self) -> None:
        """Until close(), or until it was left."""
        self._thread = threading.get_ident()
        self._ended.clear()
        try:
            with contextlib.suppress(_LeftError):  # it comes at any time, and there may be several
                self._answer_all()
        finally:
            self._busy = False
            self._ended.set()

    def _answer_all(self) -> None:
        null = self._ffi.NULL
        while True:
            self._busy = False
            ask = self._call("next")
            if ask == null:
                return
            self._busy = True
            try:
                self._forget(ask)
                if ask.type < len(self.METHODS):
                    self._answer(ask)
            except BaseException as error:
                self._fail(ask, f"{self._method(ask.type)} raised {described(error)}")

    def _forget(self, ask: Any) -> None:
        if ask.released_n:
            for ended in list(ask.released)[: ask.released_n]:
                self._objects.pop(ended, None)
            ask.released_n = 0

    @abstractmethod
    def _answer(self, ask: Any) -> None:
        """Asks the connection's object, and writes down what it says."""

    def _method(self, number: int) -> str:
        return self.METHODS[number] if number < len(self.METHODS) else "release"

    def _fail(self, ask: Any, why: str) -> None:
        most = self._ffi.sizeof(ask.why) - 1
        ask.why = why.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").encode()
        ask.failed = 1


class Bridge(Asked, Control):
    """A congestion control in Python."""

    FRONT = "cc_asker_"
    METHODS = METHODS

    def __init__(self, plugin: Plugin, control: type, ffi: Any, lib: Any) -> None:
        has = 1 << lib.CC_INIT | 1 << lib.CC_RELEASE
        for number, name in enumerate(METHODS):
            has |= (getattr(control, name, None) is not None) << number
        guard = lib.cc_asker_create(plugin.short.encode(), has, int(PATIENCE_S * 1e9))
        if guard == ffi.NULL:
            raise MemoryError
        guard.ops.prr = bool(getattr(control, "prr", False))
        guard.ops.loss_tolerant = bool(getattr(control, "loss_tolerant", False))
        super().__init__(plugin, control, guard, ffi, lib)
        self._told = _layout(ffi, "struct cc_ask", _TOLD)
        self._sample = _layout(ffi, "struct cc_sample", Sample._fields)
        self._cc_at = int(ffi.offsetof("struct cc_ask", _TOLD[0]))
        self._sample_at = int(ffi.offsetof("struct cc_ask", "sample"))

    def _in_use(self) -> bool:
        return bool(self._lib.cc_asker_connections(self.guard))

    def _answer(self, ask: Any) -> None:
        number, handle = ask.type, ask.handle
        raw = self._ffi.buffer(ask)
        if number == 0:
            self._objects[handle] = self._class(), Window()
        control, window = self._objects[handle]
        (
            window.cwnd_bytes,
            window.pacing_Bps,
            window.spare_bytes,
            window.inflight_bytes,
            window.srtt_ns,
            window.min_rtt_ns,
            window.spare,
            window.mss,
            window.in_recovery,
        ) = self._told.unpack_from(raw, self._cc_at)
        method = getattr(control, METHODS[number], None)
        if number == 1:
            control.on_ack(window, Sample._make(self._sample.unpack_from(raw, self._sample_at)))
        elif METHODS[number] == "on_restart":
            control.on_restart(window, ask.idle_ns, ask.now_ns)
        elif method is not None:
            method(window, ask.now_ns)
        for name in ("cwnd_bytes", "pacing_Bps", "spare_bytes", "spare"):
            value = getattr(window, name)
            if type(value) is not int or not 0 <= value < _MOST:
                value = _number(value)
                if value is None:
                    said = f"{self._method(number)} set {name} to {_shown(getattr(window, name))}"
                    self._fail(
                        ask,
                        f"{said}, which is no {'number of bytes' if name != 'spare' else 'number'}",
                    )
                    return
            setattr(ask, name, value)


def _number(value: Any) -> int | None:
    """A window or a rate as whole bytes, if it is one."""
    try:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        whole = int(value)
    except (ArithmeticError, ValueError):
        return None
    return whole if value >= 0 and whole < _MOST else None


def _shown(value: Any) -> str:
    try:
        return repr(value)[:40]
    except BaseException:
        return "what cannot be printed"
