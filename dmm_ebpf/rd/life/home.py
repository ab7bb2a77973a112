# SPDX-License-Identifier: Apache-2.0
"""The run directory of an instance while it is attached: made anew where somebody has removed it,
with all that its Resource Director can put there. A stack process's socket nobody can: it has given
up every right to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.rundir import RunDir, State
from dmm_ebpf.rd.life import starting
from dmm_ebpf.userstack.spec import control_path


class Home(Item):
    """The directory, with the lock, the state, the log and the socket."""

    def __init__(self, run: RunDir, state: State, listen: Callable[[], Awaitable[None]]) -> None:
        """listen makes the socket."""
        super().__init__(f"run directory {run.path}")
        self._run = run
        self._state = state
        self._listen = listen

    def look(self) -> str:
        return (
            ""
            if self._run.stands() and self._run.socket.exists()
            else "somebody removed it, or its socket"
        )

    async def mend(self) -> None:
        if not self._run.stands():
            self._run.claim_again()
            self._run.save(self._state)
            starting.log_again(self._run.log)
        await self._listen()


class Doors(Item):
    """The control sockets of stack processes."""

    def __init__(self, run: RunDir, state: State) -> None:
        super().__init__("control sockets of stack processes")
        self._run = run
        self._state = state

    def look(self) -> str:
        paths = {
            one.label: control_path(self._run.path, one.label)
            for one in self._state.stacks
            if one.pid
        }
        gone = [label for label, path in paths.items() if not path.exists()]
        if not gone:
            return ""
        whose = ", ".join(gone)
        return f"somebody removed that of {whose}, which serves on without figures and changes until its next start"

    async def mend(self) -> None:
        """Only a start makes one, and a start would reset the flows."""
