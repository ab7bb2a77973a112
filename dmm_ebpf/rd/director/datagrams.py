# SPDX-License-Identifier: Apache-2.0
"""The exchanges of datagrams whose route names a user stack, for listings: who carries them, and
if that is the kernel, why. An exchange that a peer has begun has no socket before the first answer.

An exchange is over when conntrack would have forgotten it, or, of a connected socket that the
kernel serves, with its socket.
A connected socket that has sent nothing yet is in no exchange.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import rtnl, sockdiag
from dmm_ebpf.hal.netlink import RouteSocket
from dmm_ebpf.hal.sockdiag import TcpSocket
from dmm_ebpf.loader import Maps
from dmm_ebpf.rd.director.flows import pair_text
from dmm_ebpf.tcpstates import NUMBERS

_CONNECTED = NUMBERS["ESTABLISHED"]
_S = 1_000_000_000


@dataclass(frozen=True)
class Datagrams:
    """Of an instance, by its maps. Call it in the instance's namespace."""

    maps: Maps

    def open(self) -> Iterator[Struct]:
        """A struct dmm_flow of each: its decision's stack is who carries it now."""
        now_ns = time.monotonic_ns()
        known: set[tuple[int, bytes, int]] = set()
        for pair, one in self.maps.udp_flows.items():
            if one.flow.decision.wanted and _goes_on(one, now_ns):
                flow = abi.copy(one.flow)
                known.add((flow.cookie, bytes(flow.pair.raddr), pair.rport_be))
                known.add((flow.cookie, bytes(flow.pair.raddr), flow.pair.rport_be))
                if not flow.decision.taken:
                    flow.decision.stack = 0
                yield flow
        left = [
            flow
            for key, flow in self.maps.datagrams.items()
            if (key.cookie, key.raddr, key.rport_be) not in known
        ]
        yield from self._by_kernel(left, now_ns)

    def _by_kernel(self, records: list[Struct], now_ns: int) -> Iterator[Struct]:
        sockets = _sockets({flow.cookie for flow in records}) if records else {}
        for flow in records:
            here = sockets.get(flow.cookie)
            recent = now_ns - flow.updated_ns < C.DMM_DATAGRAM_ONE_WAY_S * _S
            if not (recent or _is_connected_to(here, flow)) or not self._explained(flow):
                continue
            if here is not None:
                flow.pair.laddr = abi.addr16(here.laddr)
                flow.pair.lport_be = socket.htons(here.lport)
            yield flow

    def _explained(self, flow: Struct) -> bool:
        """Whether it is known who carries it; then its decision says so."""
        decision = flow.decision
        if decision.stack != decision.wanted:
            return True
        if not decision.why:
            device = _leaves_by(flow)
            if device is None or self._serves(decision.wanted, device):
                return False
            decision.why = C.DMM_WHY_DEVICE
        decision.stack = 0
        return True

    def _serves(self, stack_id: int, ifindex: int) -> bool:
        """Whether a process of the stack has an inner leg for that device."""
        there = self.maps.nics.get(ifindex)
        if there is None or there.slot >= C.DMM_MAX_NICS:
            return False
        state = self.maps.stack_state[stack_id]
        seats = [seat for seat in state.seats[0 : state.processes] if seat]
        return any(self.maps.inner_devs[(seat - 1) * C.DMM_MAX_NICS + there.slot] for seat in seats)


def _goes_on(one: Struct, now_ns: int) -> bool:
    """As udp_is_open() in bpf/udp.h."""
    both = one.in_ns and one.out_ns
    wait_s = C.DMM_DATAGRAM_BOTH_WAYS_S if both else C.DMM_DATAGRAM_ONE_WAY_S
    return bool(now_ns - max(one.in_ns, one.out_ns) < wait_s * _S)


def _is_connected_to(here: TcpSocket | None, flow: Struct) -> bool:
    """Whether the socket is there, and still connected to the peer of its record."""
    if here is None or flow.state != _CONNECTED:
        return False
    _, _, raddr, rport = pair_text(flow.pair)
    return (here.raddr, here.rport) == (raddr, rport)


def _sockets(cookies: set[int]) -> dict[int, TcpSocket]:
    """Those that there are, by cookie; none where the kernel does not tell."""
    with contextlib.suppress(DmmError):
        return {one.cookie: one for one in sockdiag.iter_udp(cookies)}
    return {}


def _leaves_by(flow: Struct) -> int | None:
    """The ifindex of the device by which the kernel would send to its peer; None: by none."""
    address = abi.addr_text(bytes(flow.pair.raddr))
    with contextlib.suppress(OSError), RouteSocket() as sock:
        found = rtnl.route_to(sock, address, uid=flow.decision.uid)
        return found.devices[0] if found.devices else None
    return None
