# SPDX-License-Identifier: Apache-2.0
"""Who follows the events of an instance: those of the hooks, which come by the ring, and those of
the director.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dmm_ebpf.abi import Struct
from dmm_ebpf.loader import Attached, EventReader
from dmm_ebpf.rd.director import carriers, flows, sync
from dmm_ebpf.rd.director.names import Names

if TYPE_CHECKING:
    from dmm_ebpf.records.event import Event


class Followers:
    """Lives in an event loop. While nobody follows, the hooks report nothing but what they must,
    which costs connections less.
    """

    def __init__(
        self,
        attached: Attached,
        instance: str,
        names: Names,
        heard: Callable[[Struct], None],
    ) -> None:
        """heard: is told each struct dmm_event of the ring, whoever follows."""
        self._maps = attached.maps
        self._instance = instance
        self._names = names
        self._heard = heard
        self._callbacks: list[Callable[[Event], None]] = []
        # A Resource Director that was killed may have had followers.
        sync.set_events(self._maps, wanted=False)
        self._following = carriers.Following(instance)
        self._events = EventReader(self._maps["events"].fd)
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._ready)

    def close(self) -> None:
        """Hears the ring no more."""
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """callback gets every event from now on; the returned function ends that."""
        self._callbacks.append(callback)
        if len(self._callbacks) == 1:
            sync.set_events(self._maps, wanted=True)

        def unsubscribe() -> None:
            self._callbacks.remove(callback)
            if not self._callbacks:
                sync.set_events(self._maps, wanted=False)
                self._following.close()

        return unsubscribe

    def publish(self, make: Callable[[], Event]) -> None:
        """What make makes, if anybody follows."""
        if self._callbacks:
            event = make()
            for callback in list(self._callbacks):
                callback(event)

    def _ready(self) -> None:
        events = self._events.read()
        for event in events:
            self._heard(event)
        if not self._callbacks:
            return
        known = self._following.carriers(
            [event.flow for event in events if flows.is_decided(event)]
        )
        for event in events:
            self.publish(partial(flows.of_event, event, self._instance, self._names, known))
