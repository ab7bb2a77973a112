# SPDX-License-Identifier: Apache-2.0
"""The blocking client of a Resource Director (RD): what the command line and the TUI speak through.

Owns the path of the RD's socket and the sentences for an RD that cannot be reached.
Every failure leaves
as a DmmError: NotAttachedError when there is no such instance or nobody answers
for it (SilentError: who has it lives), PrivilegeError
when the caller may not ask, and whatever the RD itself said otherwise. It starts, stops and repairs
nothing. It asks again once, where the RD says that it hung up before it was asked (MadeRoomError).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dmm_ebpf import listing
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError, MadeRoomError, NotAttachedError, PrivilegeError, from_wire
from dmm_ebpf.instancename import check_name, is_name
from dmm_ebpf.rd.api import pulse
from dmm_ebpf.rd.director import rundir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dmm_ebpf.rd.api.wire import Connection, Message
    from dmm_ebpf.records.event import AnyEvent
    from dmm_ebpf.records.fault import FaultRow
    from dmm_ebpf.records.flow import Flow, Listener
    from dmm_ebpf.records.path import Path as PathRow
    from dmm_ebpf.records.policy import (
        Applied,
        PolicyText,
        RouteAnswer,
        RouteRow,
        RoutesChanged,
    )
    from dmm_ebpf.records.stack import StackRow
    from dmm_ebpf.records.status import Status

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
# Flows by the hundred thousand take seconds to put together.
LISTING_TIMEOUT_S = 60.0
# A million routes are validated, compiled and written before the RD answers.
APPLY_TIMEOUT_S = 600.0


def socket_path(instance: str) -> Path:
    """Where the RD of instance listens."""
    return rundir.ROOT / instance / "rd.sock"


def instances() -> list[str]:
    """Names of the instances with a run directory or with programs that are attached, sorted; an RD
    may be dead. Raises PrivilegeError.
    """
    from dmm_ebpf import loader

    try:
        names = {folder.name for folder in listing.folders(rundir.ROOT) if is_name(folder.name)}
    except PermissionError as error:
        raise _not_permitted("list the instances") from error
    with contextlib.suppress(DmmError):  # for who may not look there
        names |= set(loader.instances())
    return sorted(names)


def _not_permitted(what: str) -> PrivilegeError:
    return PrivilegeError(
        what, why="Permission denied", hint="run it as root, or as a member of attach's --group"
    )


class NotServingError(NotAttachedError):
    """A living process has the instance, and does not serve it yet, or no longer."""


class HomelessError(NotAttachedError):
    """Somebody took the run directory of the instance away: its programs are attached, and
    nobody can be asked.
    """


class SilentError(NotAttachedError):
    """A living Resource Director does not answer."""

    exit_code = 75  # sysexits.h EX_TEMPFAIL


class Client(Closing):
    """One connection to the RD of instance, opened at the first call. For one thread at a time."""

    def __init__(self, instance: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.instance = check_name(instance)
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._number = 0

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """Make a call in progress fail soon. Unlike everything else here, for other threads too."""
        connection = self._connection
        if connection is not None:
            connection.shutdown()

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of method, as maps; of a listing that comes in pages, all its rows.

        Raises NotAttachedError, PrivilegeError, FrameError, or what the RD said.
        """
        rows: list[Any] = []
        result: Any = None
        for message in self._exchange(method, params):
            if "page" in message:
                rows += message["page"]
            else:
                result = _result(message, f"ask instance {self.instance} for {method}")
        return rows + result if rows else result

    def status(self) -> Status:
        """The instance as a whole. Raises as call() does, as do all that follow."""
        from dmm_ebpf.records.status import Status

        return Status.from_map(self.call("status"))

    def stacks(self) -> list[StackRow]:
        """Its stacks."""
        from dmm_ebpf.records.stack import StackRow

        return [StackRow.from_map(row) for row in self.call("stacks")]

    def listeners(self) -> list[Listener]:
        """Its listening addresses."""
        from dmm_ebpf.records.flow import Listener

        return [Listener.from_map(row) for row in self.call("listeners")]

    def paths(self) -> list[PathRow]:
        """What is known of the paths of its adaptive routes."""
        from dmm_ebpf.records.path import Path as PathRow

        return [PathRow.from_map(row) for row in self.call("paths")]

    def flows(self) -> Iterator[Flow]:
        """Its open flows, as they come."""
        from dmm_ebpf.records.flow import Flow
        from dmm_ebpf.records.record import from_columns

        for message in self._exchange("flows", {"columns": True}):
            if "columns" in message:
                yield from from_columns(Flow, message["columns"], message["page"])
            else:
                # A director of another version may know no columns.
                rows = message.get("page")
                if rows is None:
                    rows = _result(message, f"ask instance {self.instance} for flows")
                yield from map(Flow.from_map, rows)

    def route_get(self, **query: Any) -> RouteAnswer:
        """What a new flow would get; query: of evaluate.Query.from_params()."""
        from dmm_ebpf.records.policy import RouteAnswer

        return RouteAnswer.from_map(self.call("route_get", **query))

    def routes(self) -> Iterator[RouteRow]:
        """Its routes, as they come: the live ones first."""
        from dmm_ebpf.records.policy import RouteRow

        for message in self._exchange("routes", {}):
            rows = message.get("page")
            if rows is None:
                rows = _result(message, f"ask instance {self.instance} for routes")
            yield from map(RouteRow.from_map, rows)

    def route_change(self, verb: str, routes: Sequence[Message] = ()) -> RoutesChanged:
        """Put routes beside the policy in force, or take them away: see Live.edit()."""
        from dmm_ebpf.records.policy import RoutesChanged

        return RoutesChanged.from_map(self.call("route_change", verb=verb, routes=list(routes)))

    def policy_show(self) -> PolicyText:
        """The policy in force."""
        from dmm_ebpf.records.policy import PolicyText

        return PolicyText.from_map(self.call("policy_show"))

    def policy_apply(self, path: str, text: str) -> Applied:
        """Put a policy in force."""
        from dmm_ebpf.records.policy import Applied

        return Applied.from_map(self.call("policy_apply", path=path, text=text))

    def faults(self, stacks: Sequence[str], plans: Sequence[Message]) -> list[FaultRow]:
        """Give the processes of these stacks (none: of all) plans of userstack/faultplans.py; what
        is injected then.
        """
        from dmm_ebpf.records.fault import FaultRow

        rows = self.call("faults", stacks=list(stacks), plans=list(plans))
        return [FaultRow.from_map(row) for row in rows]

    def _exchange(self, method: str, params: Message) -> Iterator[Message]:
        """The pages that answer a request, if any, and the reply."""
        what = f"ask instance {self.instance} for {method.replace('_', ' ')}"
        ended = False
        try:
            connection, message = self._asked_again(what, method, params)
            while isinstance(message.get("page"), list):
                yield message
                message = self._receive(connection, what)
            ended = True
            yield message
        finally:
            if not ended:
                # A late answer to this call must never be taken for the answer to the next one.
                self.close()

    def _asked_again(self, what: str, method: str, params: Message) -> tuple[Connection, Message]:
        """The first message that answers a request, and by which connection it came."""
        try:
            return self._asked(what, method, params)
        except MadeRoomError:
            return self._asked(what, method, params)

    def _asked(self, what: str, method: str, params: Message) -> tuple[Connection, Message]:
        if self._connection is None:
            self._connection = _connect(self.instance, what, self._timeout_s)
        connection = self._connection
        self._number += 1
        self._send(connection, what, method, params)
        return connection, self._receive(connection, what)

    def _send(self, connection: Connection, what: str, method: str, params: Message) -> None:
        from dmm_ebpf.rd.api import wire

        watch = pulse.Watch(connection.peer_pid())
        try:
            _send(connection, wire.request(self._number, method, params), self._timeout_s, watch)
        except TimeoutError as error:
            raise _silent(what, self.instance, watch) from error
        except OSError as error:
            # It may have said why, and hung up before it read this.
            with contextlib.suppress(NotAttachedError):
                self._receive(connection, what)
            raise _gone(what, self.instance) from error

    def _receive(self, connection: Connection, what: str) -> Message:
        from dmm_ebpf.rd.api import wire

        watch = pulse.Watch(connection.peer_pid())
        try:
            message = _patiently(connection.receive, connection, self._timeout_s, watch)
        except TimeoutError as error:
            raise _silent(what, self.instance, watch) from error
        except OSError as error:
            raise _gone(what, self.instance) from error
        if message is None:
            raise _gone(what, self.instance)
        if message.get("id") == wire.CONNECTION:
            self.close()
            _result(message, what)
        if message.get("id") != self._number:
            raise wire.ANSWERS.error(
                f"an answer to request {message.get('id')} arrived, expected one to {self._number}"
            )
        return message

    def stream(self, method: str, /, **params: Any) -> Subscription:
        """The events of a streaming method, over a connection of its own. Raises as call() does."""
        return Subscription(self.instance, method, params, timeout_s=self._timeout_s)


class Subscription(Closing):
    """An open stream of events: iterate it, or select() on it and call read_ready().
    close() ends it.
    """

    def __init__(self, instance: str, method: str, params: Message, *, timeout_s: float) -> None:
        from dmm_ebpf.rd.api import wire

        self.instance = instance
        self._what = f"follow instance {instance}"
        request = wire.request(1, method, params)
        try:
            try:
                self._open(request, timeout_s)
            except BrokenPipeError:  # it hung up before it was asked, for another one's sake
                self._open(request, timeout_s)
        except OSError as error:
            raise _gone(self._what, instance) from error

    def _open(self, request: bytes, timeout_s: float) -> None:
        self._connection = _connect(self.instance, self._what, timeout_s)
        try:
            self._watch = pulse.Watch(self._connection.peer_pid())
            _send(self._connection, request, timeout_s, self._watch)
            self._connection.set_timeout(None)
        except OSError:
            self._connection.close()
            raise

    def __iter__(self) -> Iterator[Message]:
        while True:
            yield from self.read_ready()

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def read_events(self) -> list[AnyEvent]:
        """read_ready(), as records."""
        from dmm_ebpf.records.event import event_of

        return [event_of(event) for event in self.read_ready()]

    def read_ready(self) -> list[Message]:
        """Events of one recv(), as maps, perhaps none. Raises NotAttachedError when the RD
        ended the stream.
        """
        try:
            messages = self._connection.read_ready()
        except OSError as error:
            raise _gone(self._what, self.instance) from error
        if messages is None:
            raise _gone(self._what, self.instance)
        return [_event(message, self._what) for message in messages]

    def silence(self) -> SilentError | None:
        """Look whether the RD stands still, while nothing comes: again and again, pulse.LOOK_S
        apart. None: it does not, or not for long enough.
        """
        if not self._watch.stands_still():
            return None
        return _silent(self._what, self.instance, self._watch)

    def close(self) -> None:
        """End the stream; again is harmless."""
        self._connection.close()


def _send(connection: Connection, frame: bytes, timeout_s: float, watch: pulse.Watch) -> None:
    """Raises as _patiently() does."""
    rest = memoryview(frame)
    while rest:
        sent = _patiently(partial(connection.send_some, rest), connection, timeout_s, watch)
        rest = rest[sent:]


def _patiently(
    step: Callable[[], T], connection: Connection, timeout_s: float, watch: pulse.Watch
) -> T:
    """What a step with the RD gives. Raises TimeoutError when it was not done in time, or when
    the RD stands still; OSError, FrameError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        connection.set_timeout(min(left, pulse.LOOK_S) or 0.001)
        try:
            return step()
        except TimeoutError:
            if left <= pulse.LOOK_S or watch.stands_still():
                raise


def _connect(instance: str, what: str, timeout_s: float) -> Connection:
    from dmm_ebpf.rd.api import wire

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Where many connect at once it waits its turn, which a socket that does not block cannot.
        within = struct.pack("@qq", *divmod(round(timeout_s * 1_000_000), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, within)
        sock.connect(str(socket_path(instance)))
        sock.settimeout(timeout_s)
    except OSError as error:
        sock.close()
        raise _unreachable(what, instance, error) from error
    return wire.Connection(sock)


def _unreachable(what: str, instance: str, exc: OSError) -> NotAttachedError | PrivilegeError:
    if isinstance(exc, PermissionError):
        return _not_permitted(what)
    if isinstance(exc, FileNotFoundError) and not (rundir.ROOT / instance).is_dir():
        return _absent(what, instance)
    if isinstance(exc, FileNotFoundError | ConnectionRefusedError):
        if _is_locked(instance):
            return NotServingError(
                what,
                why="its Resource Director is starting or ending",
                hint="ask again in a moment",
            )
        return NotAttachedError(
            what,
            why="its Resource Director is not running",
            hint="attach the instance again to take over what it left, "
            f"or remove that with dmm-ebpf detach --instance {instance}",
        )
    if isinstance(
        exc, TimeoutError | BlockingIOError
    ):  # EAGAIN: more than it has taken are waiting
        return _silent(what, instance)
    return NotAttachedError(what, why=exc.strerror or str(exc))


def _is_locked(instance: str) -> bool:
    """False for who may not look."""
    with contextlib.suppress(PermissionError):
        return rundir.RunDir(instance).is_locked()
    return False


def _absent(what: str, instance: str) -> NotAttachedError:
    from dmm_ebpf import loader

    with contextlib.suppress(DmmError):
        if instance in loader.instances():
            return HomelessError(
                what,
                why=f"its run directory {rundir.ROOT / instance} is gone, though its programs are attached",
                hint="its Resource Director, if it lives, makes it anew within a second; else take them away with "
                f"dmm-ebpf detach --instance {instance}, and attach it again",
            )
    return NotAttachedError(
        what,
        why="there is no such instance",
        hint="dmm-ebpf attach starts one, dmm-ebpf status lists them",
    )


def _silent(what: str, instance: str, watch: pulse.Watch | None = None) -> SilentError:
    why = "its Resource Director does not answer"
    hint = f"dmm-ebpf detach --instance {instance} removes everything"
    if watch is not None and watch.stopped:
        return SilentError(
            what,
            why=f"{why}: its process {watch.pid} is stopped",
            hint=f"kill -CONT {watch.pid} lets it go on, and {hint}",
        )
    return SilentError(what, why=why, hint=f"it may be stopped or very busy; {hint}")


def _gone(what: str, instance: str) -> NotAttachedError:
    return NotAttachedError(
        what,
        why="its Resource Director closed the connection",
        hint=f"dmm-ebpf status --instance {instance} tells whether it still runs",
    )


def _result(message: Message, what: str) -> Any:
    from dmm_ebpf.rd.api import wire

    if message.get("ok") is True:
        return message.get("result")
    error = message.get("error")
    if not isinstance(error, dict):
        raise wire.ANSWERS.error(f"neither a result nor an error arrived for: {what}")
    raise from_wire(error)


def _event(message: Message, what: str) -> Message:
    if message.get("ok") is False:
        _result(message, what)
    event = message.get("event")
    if isinstance(event, dict):
        return event
    from dmm_ebpf.rd.api import wire

    raise wire.ANSWERS.error("a message without an event arrived in a stream of events")
