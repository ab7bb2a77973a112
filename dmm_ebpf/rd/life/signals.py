# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP, heard from a command's first moment to its last.

Python's own answers (KeyboardInterrupt between any two instructions, or sudden death) would leave
half of what is being made or unmade. Here a signal is only noted; the command acts on it where it
can undo what it has done.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Hear = Callable[[signal.Signals], object]


class StoppedError(DmmError):
    """A command was asked to end before it was through; the exit code is the shell's
    for a signal.
    """

    def __init__(self, what: str, number: signal.Signals) -> None:
        super().__init__(
            what, why=f"{number.name} came first", hint="what was made has been removed again"
        )
        self.exit_code = 128 + number


class Signals(Closing):
    """Takes the signals over until closed. For the main thread (signal(2) handlers run there)."""

    def __init__(self) -> None:
        self._terminal = _has_terminal()
        self._early: list[signal.Signals] = []
        self._hear: Hear = self._early.append
        self._before = {number: signal.signal(number, self._arrived) for number in HEARD}

    def ignored(self) -> list[signal.Signals]:
        """Those that this process was told to ignore when it was started, as nohup(1)
        does with SIGHUP.
        """
        return [number for number, before in self._before.items() if before is signal.SIG_IGN]

    def ends(self, number: signal.Signals, *, reloads: bool = False) -> bool:
        """True if a signal asks for the end. SIGHUP does not under nohup(1), nor where it means
        another reading of the policy (reloads), unless the controlling terminal is gone that this
        process was started in.
        """
        if number != signal.SIGHUP:
            return True
        if number in self.ignored():
            return False
        return not reloads or (self._terminal and not _has_terminal())

    def listen(self, hear: Hear) -> None:
        """hear gets each signal from now on, between any two instructions of the main thread; at
        once those that came before anybody listened.
        """
        self._hear = hear
        while self._early:
            hear(self._early.pop(0))

    def silence(self) -> None:
        """The work is done, and none ends the process any more: what is ignored stays so while
        Python ends, where handlers are given up (Py_FinalizeEx).
        """
        for number in HEARD:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Give the signals back to who had them."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _arrived(self, number: int, _frame: object) -> None:
        self._hear(signal.Signals(number))


class Stop:
    """What signals ask of a Resource Director: to end, once, or to read its policy again. Lives
    in an event loop.
    """

    def __init__(self, signals: Signals) -> None:
        loop = asyncio.get_running_loop()
        self.by: signal.Signals | None = None
        self._signals = signals
        self._stop: Callable[[], object] | None = None
        self._reload: Callable[[], object] | None = None
        signals.listen(
            lambda n: None if loop.is_closed() else loop.call_soon_threadsafe(self._heard, n)
        )

    def then(self, stop: Callable[[], object], reload: Callable[[], object] | None = None) -> None:
        """From now on the first signal that asks for the end calls stop, which is called at
        once if it has come.
        """
        self._stop, self._reload = stop, reload
        if self.by is not None:
            stop()

    def _heard(self, number: signal.Signals) -> None:
        if not self._signals.ends(number, reloads=self._reload is not None):
            if self._reload is not None:
                self._reload()
        elif self.by is None:
            self.by = number
            if self._stop is not None:
                self._stop()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal: tty(4), ENXIO after it was hung up."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(fd)
    return True
