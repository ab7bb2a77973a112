# SPDX-License-Identifier: Apache-2.0
"""Where listings come from: every instance's Resource Director (RD), or its pinned maps when the
RD is dead.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dmm_ebpf.cli.output import Row, note
from dmm_ebpf.errors import DmmError, NotAttachedError, UsageError
from dmm_ebpf.rd.api import client

_RESCAN_S = 0.5


@dataclass
class Listing:
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


Offline = Callable[[str], list[Row]]


class Rows:
    """The rows that method gives for instance, or for all (None), each with its instance's name,
    as they come.

    Iterate them, once; then finish() raises what kept an instance from giving (all of) its own.
    Where that leaves no row of the only instance asked, iterating raises it.
    """

    def __init__(self, method: str, instance: str | None, offline: Offline | None = None) -> None:
        self._method, self._instance, self._offline = method, instance, offline
        self._error: DmmError | None = None

    def __iter__(self) -> Iterator[Row]:
        names = client.instances() if self._instance is None else [self._instance]
        if not names:
            note("no instance is attached; dmm-ebpf attach starts one")
        for name in names:
            given = False
            try:
                for row in _rows(self._method, name, self._offline):
                    given = True
                    if self._instance is None and self._method == "flows" and row.get("carrier"):
                        continue  # its carrier lists it
                    yield {**row, "instance": row.get("instance", name)}
            except DmmError as exc:
                if self._instance is not None and not given:
                    raise
                if isinstance(exc, client.NotServingError):
                    note(f"instance {name}: {exc.why}; left out")
                    continue
                here = (
                    isinstance(exc, client.HomelessError)
                    or client.socket_path(name).parent.is_dir()
                )
                if self._instance is not None or here:
                    self._error = self._error or exc
                # Otherwise it was detached since the names were read.

    def finish(self) -> None:
        """Raise what was held back, after the rows are shown."""
        if self._error is not None:
            raise self._error


def listing(method: str, instance: str | None, offline: Offline | None = None) -> Listing:
    """The rows that method gives for instance, or for all (None), put together."""
    rows = Rows(method, instance, offline)
    result = Listing(list(rows))
    try:
        rows.finish()
    except DmmError as exc:
        result.error = exc
    return result


def _rows(method: str, name: str, offline: Offline | None) -> Iterator[Row]:
    given = False
    try:
        timeout_s = client.LISTING_TIMEOUT_S if method == "flows" else client.CALL_TIMEOUT_S
        with client.Client(name, timeout_s=timeout_s) as rd:
            if method == "flows":
                for row in rd.rows(method):
                    given = True
                    yield row
                return
            answer = rd.call(method)
    except client.NotServingError:
        raise
    except NotAttachedError as exc:
        if given or offline is None or not client.socket_path(name).parent.is_dir():
            raise
        try:
            rows = offline(name)
        except NotAttachedError:
            raise exc from None  # it left no pins either
        note(f"instance {name}: {exc.why}; shown from what it left pinned")
        yield from rows
        return
    yield from [{**answer, "rd": "up"}] if isinstance(answer, dict) else list(answer)


def status(instance: str | None) -> Listing:
    """status of instance or of all; `rd` says whether its Resource Director runs, `nested`
    what rd.nested tells.
    """
    from dmm_ebpf.rd.director.nested import nested

    def offline(name: str) -> list[Row]:
        from dmm_ebpf.rd.life import attaching as service

        return [{**service.offline_status(name), "rd": "dead"}]

    found = listing("status", instance, offline)
    for row in found.rows:
        row["nested"] = nested(row["instance"])
    return found


def stacks(instance: str | None) -> Listing:
    """The stacks of instance or of all."""

    def offline(name: str) -> list[Row]:
        from dmm_ebpf.rd.life import attaching as service

        return list(service.offline_status(name)["stacks"])

    return listing("stacks", instance, offline)


def listeners(instance: str | None) -> Listing:
    """The listening addresses of instance or of all."""

    def offline(name: str) -> list[Row]:
        from dmm_ebpf.rd.life import attaching as service

        return list(service.offline_listeners(name))

    return listing("listeners", instance, offline)


def flows(instance: str | None) -> Rows:
    """The open flows of instance or of all: there may be a great many."""

    def offline(name: str) -> list[Row]:
        from dmm_ebpf.rd.life import attaching as service

        return list(service.offline_flows(name))

    return Rows("flows", instance, offline)


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

    def close(self) -> None:
        """End every stream."""
        for subscription in self._open.values():
            subscription.close()
        self._selector.close()

    def events(self) -> Iterator[dict[str, Any]]:
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
            for key, _mask in self._selector.select(None if self._instance else _RESCAN_S):
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

    def _read(self, name: str) -> Iterator[dict[str, Any]]:
        subscription = self._open[name]
        try:
            events = subscription.read_ready()
        except NotAttachedError as exc:
            if self._instance is not None:
                raise
            self._selector.unregister(subscription)
            subscription.close()
            del self._open[name]
            note(f"instance {name}: {exc.why}")
            return
        for event in events:
            yield {**event, "instance": event.get("instance", name)}


def _is_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, io.UnsupportedOperation):  # as in a test
        return False
