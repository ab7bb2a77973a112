# SPDX-License-Identifier: Apache-2.0
"""Where listings come from: every instance's Resource Director (RD), or its pinned maps when the
RD is dead, or does not answer.

Owns the choice of instances for a command. A listing takes what it can get: an instance whose
RD is dead
is read from its pins with a note, one that was detached meanwhile is left out, one that is starting
or ending is left out with a note, and one that cannot be read at all makes the command fail only
after the others are shown.
"""

from __future__ import annotations

import io
import os
import selectors
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dmm_ebpf.cli.output import note
from dmm_ebpf.errors import DmmError, NotAttachedError, PrivilegeError, UsageError
from dmm_ebpf.rd.api import client

if TYPE_CHECKING:
    from dmm_ebpf.records.event import AnyEvent
    from dmm_ebpf.records.flow import Flow, Listener
    from dmm_ebpf.records.path import Path as PathRow
    from dmm_ebpf.records.stack import StackRow
    from dmm_ebpf.records.status import Status

_RESCAN_S = 0.5

Row = TypeVar("Row")


@dataclass
class Listing(Generic[Row]):
    """The rows of every instance asked, and the first error of those that gave none."""

    rows: list[Row] = field(default_factory=list)
    error: DmmError | None = None

    def finish(self) -> None:
        """Raise what was held back, after the rows are shown."""
        if self.error is not None:
            raise self.error


def the_instance(name: str | None) -> str:
    """The instance a question is for: the one named, else "default", else the only
    one. Raises DmmError.
    """
    if name is not None:
        return name
    names = client.instances()
    if "default" in names:
        return "default"
    if len(names) == 1:
        return names[0]
    if names:
        raise UsageError(
            "choose an instance",
            why=f"there are {', '.join(names)}",
            hint="name one with --instance",
        )
    raise NotAttachedError(
        "ask the Resource Director",
        why="no instance is attached",
        hint="dmm-ebpf attach starts one",
    )


class Rows(Generic[Row]):
    """The rows of instance, or of all (None), as they come.

    Iterate them, once; then finish() raises what kept an instance from giving (all of) its own.
    Where that leaves no row of the only instance asked, iterating raises it.
    """

    def __init__(
        self,
        instance: str | None,
        ask: Callable[[client.Client], Iterable[Row]],
        offline: Callable[[str], Iterable[Row]],
        *,
        timeout_s: float = client.CALL_TIMEOUT_S,
    ) -> None:
        """ask: gives those of an instance whose Resource Director serves; offline: those of one
        whose is dead or does not answer, by its name.
        """
        self._instance, self._ask, self._offline = instance, ask, offline
        self._timeout_s = timeout_s
        self._error: DmmError | None = None
        self._answered = False
        self.silent: set[str] = set()  # instances whose Resource Director lives, and says nothing
        self._barred: dict[str, PrivilegeError] = {}  # by instance: those of others than the caller

    def __iter__(self) -> Iterator[Row]:
        names = client.instances() if self._instance is None else [self._instance]
        if not names:
            note("no instance is attached; dmm-ebpf attach starts one")
        for name in names:
            given = False
            try:
                for row in self._of(name):
                    given = True
                    yield row
                self._answered = True
            except PrivilegeError as error:
                if self._instance is not None:
                    raise
                self._barred[name] = error
            except DmmError as error:
                if self._instance is not None and not given:
                    raise
                self._hold(name, error)

    def _of(self, name: str) -> Iterator[Row]:
        given = False
        try:
            with client.Client(name, timeout_s=self._timeout_s) as rd:
                for row in self._ask(rd):
                    given = True
                    yield row
        except client.NotServingError:
            raise
        except NotAttachedError as error:
            if given or not client.socket_path(name).parent.is_dir():
                raise
            try:
                rows = self._offline(name)
            except NotAttachedError:
                raise error from None  # it left no pins either
            except (PrivilegeError, PermissionError):
                raise PrivilegeError(
                    f"look at instance {name}",
                    why=f"{error.why}, and only root may read what it has pinned",
                    hint="run it as root",
                ) from None
            note(f"instance {name}: {error.why}; shown from what it left pinned")
            if isinstance(error, client.SilentError):
                self.silent.add(name)
            yield from rows

    def _hold(self, name: str, error: DmmError) -> None:
        """Until the rows are shown; of an instance that was detached since the names were read
        nothing is.
        """
        if isinstance(error, client.NotServingError):
            note(f"instance {name}: {error.why}; left out")
            return
        homeless = isinstance(error, client.HomelessError)
        if self._instance is not None or homeless or client.socket_path(name).parent.is_dir():
            if self._error is None:
                self._error = error
            else:
                note(str(error))

    def finish(self) -> None:
        """Raise what was held back, after the rows are shown. An instance that the caller may not
        ask is an error where no other could be asked.
        """
        if not self._answered and self._error is None:
            self._error = next(iter(self._barred.values()), None)
        if self._error is not None:
            raise self._error
        if self._barred:
            note(f"left out, as only others may ask: {', '.join(self._barred)}")


def _listing(rows: Rows[Row]) -> Listing[Row]:
    """The rows, put together."""
    result = Listing(list(rows))
    try:
        rows.finish()
    except DmmError as error:
        result.error = error
    return result


def _left() -> ModuleType:
    """What tells of instances whose Resource Director is dead."""
    from dmm_ebpf.rd.life import attaching

    return attaching


def status(instance: str | None) -> Listing[Status]:
    """status of instance or of all."""

    def asked(rd: client.Client) -> list[Status]:
        return [replace(rd.status(), rd="up")]

    def offline(name: str) -> list[Status]:
        from dmm_ebpf.rd.director.nested import nested

        return [replace(_left().offline_status(name), rd="dead", nested=nested(name))]

    listing = _listing(rows := Rows(instance, asked, offline))
    listing.rows = [
        replace(row, rd="silent") if row.instance in rows.silent else row for row in listing.rows
    ]
    return listing


def stacks(instance: str | None) -> Listing[StackRow]:
    """The stacks of instance or of all."""

    def offline(name: str) -> list[StackRow]:
        left: Status = _left().offline_status(name)
        return left.stacks

    return _listing(Rows(instance, client.Client.stacks, offline))


def listeners(instance: str | None) -> Listing[Listener]:
    """The listening addresses of instance or of all."""

    def offline(name: str) -> list[Listener]:
        left: list[Listener] = _left().offline_listeners(name)
        return left

    return _listing(Rows(instance, client.Client.listeners, offline))


def paths(instance: str | None) -> Listing[PathRow]:
    """What is known of the paths of instance or of all; where the Resource Director is dead, who
    knew is gone.
    """
    return _listing(Rows(instance, client.Client.paths, lambda _: []))


def flows(instance: str | None) -> Rows[Flow]:
    """The open flows of instance or of all: there may be a great many. One that another instance
    carries is listed by that one, too, and so left out of all.
    """

    def wanted(rows: Iterable[Flow]) -> Iterator[Flow]:
        return (row for row in rows if instance is not None or not row.carrier)

    def offline(name: str) -> Iterator[Flow]:
        return wanted(_left().offline_flows(name))

    return Rows(
        instance, lambda rd: wanted(rd.flows()), offline, timeout_s=client.LISTING_TIMEOUT_S
    )


class Follower:
    """Events of one instance, or of all there are and of those still to come, until
    it is closed.
    """

    def __init__(self, instance: str | None) -> None:
        self._instance = instance
        self._selector = selectors.DefaultSelector()
        if _is_pipe(sys.stdout):
            # Of the end that is written to, nothing is told but that its reader has gone.
            self._selector.register(sys.stdout, selectors.EVENT_READ, None)
        self._open: dict[str, client.Subscription] = {}
        self._silent: set[str] = set()  # instances whose Resource Director stands still
        self._listen_at = 0.0
        self._barred: dict[str, PrivilegeError] = {}  # by instance: those of others than the caller

    def close(self) -> None:
        """End every stream."""
        for subscription in self._open.values():
            subscription.close()
        self._selector.close()

    def events(self) -> Iterator[AnyEvent]:
        """Each event as it comes. Raises NotAttachedError when the instance that was named is gone,
        and BrokenPipeError when the reader of a piped standard output is: it may be long until
        something has to be written.
        """
        if self._instance is not None:
            self._subscribe(self._instance)
        elif not client.instances():
            note("no instance is attached yet; waiting for one")
        while True:
            if self._instance is None:
                self._scan()
            self._listen()
            for key, _mask in self._selector.select(_RESCAN_S):
                if key.data is None:
                    raise BrokenPipeError
                yield from self._read(key.data)

    def _subscribe(self, name: str) -> None:
        subscription = client.Client(name).stream("follow")
        self._open[name] = subscription
        self._selector.register(subscription, selectors.EVENT_READ, name)

    def _scan(self) -> None:
        for name in client.instances():
            if name not in self._open:
                try:
                    self._subscribe(name)
                except NotAttachedError:
                    # It is starting, or its RD is dead: the next scan tells.
                    continue
                except PrivilegeError as error:
                    self._bar(name, error)
        if self._barred and not self._open:
            raise next(iter(self._barred.values()))

    def _listen(self) -> None:
        """Say which Resource Director stands still, and which one does no longer: once each."""
        if time.monotonic() < self._listen_at:
            return
        self._listen_at = time.monotonic() + _RESCAN_S
        for name, subscription in self._open.items():
            silence = subscription.silence()
            if silence is not None and name not in self._silent:
                self._silent.add(name)
                note(f"instance {name}: {silence.why}; {silence.hint}")
            elif silence is None and name in self._silent:
                self._silent.discard(name)
                note(f"instance {name}: its Resource Director goes on")

    def _bar(self, name: str, error: PrivilegeError) -> None:
        if name not in self._barred:
            note(f"instance {name}: left out, as only others may ask")
        self._barred[name] = error

    def _read(self, name: str) -> Iterator[AnyEvent]:
        from dmm_ebpf.records.flow import FlowEvent

        subscription = self._open[name]
        try:
            events = subscription.read_events()
        except NotAttachedError as error:
            if self._instance is not None:
                raise
            self._selector.unregister(subscription)
            subscription.close()
            del self._open[name]
            self._silent.discard(name)
            note(f"instance {name}: {error.why}")
            return
        for event in events:
            carried = isinstance(event, FlowEvent) and event.flow.carrier  # which tells of it, too
            if self._instance is not None or not carried:
                yield event


def _is_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, io.UnsupportedOperation):  # as in a test
        return False
