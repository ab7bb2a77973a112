# SPDX-License-Identifier: Apache-2.0
"""Sockets that are connected under the programs' eyes, and what was decided for them."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from bpf_lab import (
    Agent,
    Bench,
    processes_up,
)
from seat_lab import Seat, begin, connect, mac_of, serve_nic

from dmm_ebpf import abi

_names = itertools.count()


def connected(bench: Bench, address: str, agent: Agent | None = None) -> str:
    """A fresh socket of the agent's, connected to the far host."""
    agent = agent or bench.agent
    name = f"c{next(_names)}"
    agent.open(name, socket.AF_INET6 if ":" in address else socket.AF_INET)
    agent.connect(name, address, bench.port)
    return name


Serve = Callable[..., list[Seat]]


@pytest.fixture
def serve(bench: Bench) -> Iterator[Serve]:
    """serve(stack, count): so many processes of a user stack on the NIC, all up."""
    serve_nic(bench.a, bench.attached)
    with ExitStack() as stack:
        taken = 0

        def made(number: int, count: int = 1) -> list[Seat]:
            nonlocal taken
            seats = []
            for process in range(count):
                k, taken = taken, taken + 1
                seat = bench.a.call(
                    lambda p=process, k=k: Seat(bench.attached, bench.a.nic.name, number, p, k=k)
                )
                stack.callback(seat.close)
                seats.append(seat)
            processes_up(bench.attached, number, (1 << count) - 1, places(seats))
            return seats

        yield made


def places(seats: list[Seat]) -> list[int]:
    """For stack_state[]."""
    return [seat.seat for seat in seats]


def carried(bench: Bench, seats: list[Seat], address: str) -> str:
    """A fresh socket of the agent's, connected by a user stack's process."""
    name = f"c{next(_names)}"
    bench.agent.open(name, socket.AF_INET6 if ":" in address else socket.AF_INET)
    connect(bench.agent, seats, mac_of(bench.a), name, address, bench.port)
    assert decision(bench, name).taken
    return name


def chosen(bench: Bench, count: int) -> list[int]:
    """The numbers of the processes that so many SYNs go to; of those that the kernel serves, -1."""
    found = []
    for _ in range(count):
        name = f"c{next(_names)}"
        bench.agent.open(name)
        begin(bench.agent, name, bench.b.ip4, bench.port)
        made = decision(bench, name)
        assert made.taken == (made.stack == 5)
        found.append(made.process if made.taken else -1)
    return found


def decision(bench: Bench, name: str, agent: Agent | None = None):
    """What flows[] says was decided for a socket."""
    flow = bench.flow((agent or bench.agent).cookie(name))
    assert flow is not None
    # A copy: a member does not outlive its struct.
    return abi.unpack("dmm_decision", abi.pack(abi.ffi.addressof(flow.decision)))
