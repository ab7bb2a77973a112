# SPDX-License-Identifier: Apache-2.0
"""TCP sockets of the attached cgroup that were there before its hooks: found, listeners
served, connections listed.

sock_diag(7) tells of all sockets with the cgroup that each was made in, whose hooks are those that
the kernel runs for it. A listener is put in listeners[] by a BPF iterator, under the socket's lock,
and from then on is like any other: which table its peers are looked up in is sync.py's to say. A
connection stays the kernel's for as long as it is open.

Left alone: what the kernel listens on for itself, connections of MPTCP, and
other network namespaces.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import exefile, sockdiag
from dmm_ebpf.hal.sockdiag import TCP_LISTEN, Owned
from dmm_ebpf.hal.socketowner import Owner, owners
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader.earlier import adopt_listeners
from dmm_ebpf.loader.spec import LISTENER_KEY
from dmm_ebpf.rd.director import sync

log = logging.getLogger("dmm-ebpf")


def _listener_key(one: Owned) -> Any:
    return LISTENER_KEY.type(
        one.laddr, int.from_bytes(one.lport, sys.byteorder), sockdiag.IPPROTO_TCP
    )


class Earlier:
    """Of one instance. look() and prune() wait for the kernel, in the
    instance's network namespace.
    """

    def __init__(self, attached: Attached, netns_cookie: int) -> None:
        self._attached = attached
        self._netns_cookie = netns_cookie
        self.trouble: str | None = None  # why listeners that were found are not served

    def begin(self, *, adopted: bool) -> None:
        """look() at an attach. adopted: a Resource Director that was killed has seen the
        connections; since then there were hooks.
        """
        if self._attached.own_id == cgroups.NOWHERE:
            return
        try:
            self.look(connections=not adopted)
        except DmmError as error:
            self.trouble = str(error)
            log.warning("%s", error)

    def look(self, *, connections: bool = True) -> int:
        """Find what was there before the hooks. Returns how many listeners listeners[] has now that
        it did not have; no table is chosen for them yet. connections: whether those that have no
        record are taken down, too.
        """
        below = sync.in_cgroup_by_path(cgroups.path_of)
        own = self._attached.own_id
        here = [one for one in sockdiag.owned() if below(one.cgroup_id, own)]
        listening = [one for one in here if one.state == TCP_LISTEN]
        if connections:
            self._take_down(here, {one.lport for one in listening})
        return self._adopt(listening)

    def _take_down(self, here: Iterable[Owned], listening: set[bytes]) -> None:
        known = {flow.cookie for flow in self._attached.flows()}
        found = [one for one in here if one.is_open and one.cookie not in known]
        holders = owners({one.inode for one in found})
        for one in found:
            direction = C.DMM_DIR_LISTEN if one.lport in listening else C.DMM_DIR_CONNECT
            self._put(one, self._entry(one, direction, holders.get(one.inode)))

    def _adopt(self, found: Iterable[Owned]) -> int:
        listening = list(found)
        holders = owners({one.inode for one in listening})
        listening = [one for one in listening if one.inode in holders]
        before = self._sockets()
        self.trouble = None
        if not listening:
            return 0
        try:
            for one in listening:
                self._put(one, self._entry(one, C.DMM_DIR_LISTEN, holders[one.inode]))
            adopt_listeners(self._attached.maps)
            self.trouble = self._unwatched(listening)
        except DmmError as error:
            self.trouble = str(error)
            log.warning("%s", error)
            return 0
        finally:
            for one in listening:
                self._attached.maps.earlier.delete(one.cookie)
        return self._sockets() - before

    def _unwatched(self, listening: Iterable[Owned]) -> str | None:
        """Why some of these, which were to be put in listeners[], are not there; None: all are."""
        there = set(self._attached.maps.listeners)
        left = [one for one in listening if one.mptcp and _listener_key(one) not in there]
        if not left:
            return None
        ports = ", ".join(sorted({str(int.from_bytes(one.lport, "big")) for one in left}, key=int))
        why = "before Linux 6.12 nothing would tell of their end; restart their servers, so that they listen anew"
        told = f"cannot serve MPTCP's listeners from before the attach (port {ports}): {why}"
        log.warning("%s", told)
        return told

    def _sockets(self) -> int:
        return sum(listener.count for listener in self._attached.maps.listeners.views())

    def _entry(self, one: Owned, direction: int, owner: Owner | None) -> Struct:
        entry = abi.new("dmm_earlier", mark=one.mark, device=one.device, mptcp=one.mptcp)
        flow, decision = entry.flow, entry.flow.decision
        flow.cookie, flow.netns_cookie, flow.opened_ns = (
            one.cookie,
            self._netns_cookie,
            time.monotonic_ns(),
        )
        flow.pair.laddr, flow.pair.lport_be = one.laddr, int.from_bytes(one.lport, sys.byteorder)
        flow.pair.raddr, flow.pair.rport_be = one.raddr, int.from_bytes(one.rport, sys.byteorder)
        flow.pair.family, flow.pair.proto = one.family, sockdiag.IPPROTO_TCP
        decision.generation = sync.current_generation(self._attached.maps)
        decision.direction, decision.route = direction, C.DMM_ROUTE_NONE
        decision.cgroup_id, decision.uid = one.cgroup_id, one.uid
        if owner is not None:
            decision.pid, decision.comm = owner.pid, owner.comm[: C.DMM_COMM_LEN - 1]
            entry.gid = owner.gid
            executes = exefile.of_process(owner.pid)
            entry.exe_device, entry.exe_inode = executes or (0, 0)
        if one.state != TCP_LISTEN:
            decision.why = C.DMM_WHY_ATTACH
        return entry

    def _put(self, one: Owned, entry: Struct) -> None:
        self._attached.maps.earlier[one.cookie] = entry

    def connections(self) -> Iterator[Struct]:
        """The struct dmm_flow of each connection that was taken down; inet_diag knows which
        are still open.
        """
        for one in self._attached.maps.earlier.views():
            if one.flow.decision.why:
                yield abi.copy(one.flow)

    def prune(self) -> None:
        """Forget the connections that are not open any more."""
        cookies = {flow.cookie for flow in self.connections()}
        if cookies:
            for cookie in cookies - sockdiag.open_cookies(cookies):
                self._attached.maps.earlier.delete(cookie)
