# SPDX-License-Identifier: Apache-2.0
"""A loaded plug-in as connections have it: its guard, its faults, and, of Python, the thread
that computes it.

A Python control sees no packet. It is asked by what runs connections (ask.h), one question at a
time, and answers from a thread of its own, so that no loop of its can hold connections for
longer than PATIENCE_S.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from struct import Struct
from typing import Any, NamedTuple

from dmm_ebpf.kit.load import METHODS, described
from dmm_ebpf.kit.names import Plugin

PATIENCE_S = 0.25
_SAFE = "cubic"
_MOST = 1 << 63
_RELEASE = len(METHODS)
# struct cc_ask from cwnd_bytes to in_recovery, and what its sample is, as Sample has it
_CC = Struct("=6Q3I")
_SAMPLE = Struct("=12Q3I")


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


class Native:
    """A shared object."""

    LOOK_S = PATIENCE_S  # between two calls of look()

    def __init__(self, plugin: Plugin, guard: Any, ffi: Any, lib: Any) -> None:
        """guard: see load.load_native()."""
        self.plugin = plugin
        self.guard = guard
        self._ffi, self._lib = ffi, lib

    @property
    def ops(self) -> Any:
        """const struct cc_ops *, for connections."""
        return self._ffi.addressof(self.guard, "ops")

    def faults(self) -> Faults:
        """So far."""
        guard = self.guard
        first = "".join(
            c if " " <= c <= "~" else "?"
            for c in self._ffi.string(guard.first).decode("utf-8", "replace")
        )
        rest = "it is not called any more" if guard.off else "its connection"
        goes = (
            f"{rest}, and connections go on by {_SAFE}"
            if guard.off
            else f"{rest} goes on by {_SAFE}"
        )
        sentence = f"{self.plugin.short}.{first}; {goes}" if first else ""
        return Faults(int(guard.faults), int(guard.fallen), sentence)

    def start(self) -> None:
        """To be called before it has connections."""

    def look(self) -> None:
        """To be called every LOOK_S: ends a call that hangs."""
        self._lib.cc_native_look(self.guard)

    def close(self) -> None:
        """When no connection has it any more."""


class Bridge(Native):
    """A Python class, and the thread that calls its objects."""

    def __init__(self, plugin: Plugin, control: type, ffi: Any, lib: Any) -> None:
        """The thread is made by start()."""
        has = 1 << lib.CC_INIT | 1 << lib.CC_RELEASE
        for number, name in enumerate(METHODS):
            has |= (getattr(control, name, None) is not None) << number
        guard = lib.cc_asker_create(plugin.short.encode(), has, int(PATIENCE_S * 1e9))
        if guard == ffi.NULL:
            raise MemoryError
        guard.ops.prr = bool(getattr(control, "prr", False))
        guard.ops.loss_tolerant = bool(getattr(control, "loss_tolerant", False))
        super().__init__(plugin, guard, ffi, lib)
        self._class = control
        self._objects: dict[int, tuple[Any, Window]] = {}
        self._busy = False
        self._cc_at = int(ffi.offsetof("struct cc_ask", "cwnd_bytes"))
        self._sample_at = int(ffi.offsetof("struct cc_ask", "sample"))
        self._thread = threading.Thread(target=self._work, name="dmm-plugin", daemon=True)

    def start(self) -> None:
        """Makes the thread."""
        self._thread.start()

    def look(self) -> None:
        """Interrupts a call that nobody waits for any more."""
        if self.guard.off and self._busy and self._thread.ident is not None:
            # Takes effect in Python code; what is in C code goes on, and is in nobody's way.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(_LeftError)
            )

    def close(self) -> None:
        """Ends the thread, unless it is in a call that does not come back."""
        self._lib.cc_asker_end(self.guard)
        if self._thread.is_alive():
            self.look()
            self._thread.join(PATIENCE_S)

    # -- in the thread --

    def _work(self) -> None:
        with contextlib.suppress(_LeftError):  # it comes at any time, and there may be several
            self._answer_all()

    def _answer_all(self) -> None:
        next_ask, guard, null = self._lib.cc_asker_next, self.guard, self._ffi.NULL
        while True:
            self._busy = False
            ask = next_ask(guard)
            if ask == null:
                return
            self._busy = True
            try:
                self._answer(ask)
            except BaseException as exc:
                self._fail(ask, f"{_method(ask.type)} raised {described(exc)}")

    def _answer(self, ask: Any) -> None:
        number, handle = ask.type, ask.handle
        if ask.released_n:
            for ended in list(ask.released)[: ask.released_n]:
                self._objects.pop(ended, None)
            ask.released_n = 0
        if number == _RELEASE:
            return
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
        ) = _CC.unpack_from(raw, self._cc_at)
        method = getattr(control, METHODS[number], None)
        if number == 1:
            control.on_ack(window, Sample._make(_SAMPLE.unpack_from(raw, self._sample_at)))
        elif METHODS[number] == "on_restart":
            control.on_restart(window, ask.idle_ns, ask.now_ns)
        elif method is not None:
            method(window, ask.now_ns)
        for name in ("cwnd_bytes", "pacing_Bps", "spare_bytes", "spare"):
            value = getattr(window, name)
            if type(value) is not int or not 0 <= value < _MOST:
                value = _number(value)
                if value is None:
                    said = f"{_method(number)} set {name} to {_shown(getattr(window, name))}"
                    self._fail(
                        ask,
                        f"{said}, which is no {'number of bytes' if name != 'spare' else 'number'}",
                    )
                    return
            setattr(ask, name, value)

    def _fail(self, ask: Any, why: str) -> None:
        most = int(self._lib.CC_WHY_BYTES) - 1
        ask.why = why.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").encode()
        ask.failed = 1


def _method(number: int) -> str:
    return METHODS[number] if number < len(METHODS) else "release"


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
