# SPDX-License-Identifier: Apache-2.0
"""Sockets of other network namespaces than the instance's: those of containers, by
their flow records.

A namespace is found by the process that its record names, or by any other that is in it; where all
have gone, nothing is told of its sockets, nor done to them. Works in the calling thread, which
stays where it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from dmm_ebpf.abi import Struct
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.hal.sockdiag import TcpSocket


def sockets(records: Mapping[int, Struct], home: int) -> dict[int, TcpSocket]:
    """By cookie, what inet_diag knows of the sockets of struct dmm_flow records that are not of
    the namespace home.
    """
    where: dict[int, int] = {}
    pids: dict[int, int] = {}
    for cookie, flow in records.items():
        where[cookie] = flow.netns_cookie
        pids[flow.netns_cookie] = flow.decision.pid
    found: dict[int, TcpSocket] = {}
    for netns, cookies in _by_namespace(where, home, pids):
        with suppress(DmmError):
            found |= netns.run_in(_read, cookies)
    return found


def destroy(where: Mapping[int, int], home: int) -> None:
    """End the sockets of these cookies, each with that of its namespace, that are not of
    the namespace home.
    """
    for netns, cookies in _by_namespace(where, home, {}):
        netns.run_in(_destroy, cookies)


def _by_namespace(
    where: Mapping[int, int], home: int, pids: Mapping[int, int]
) -> Iterator[tuple[NetNS, set[int]]]:
    """The other namespaces than home that still can be found, and the cookies of sockets there.
    pids: of a process that may be in a namespace, by its cookie.
    """
    wanted: dict[int, set[int]] = defaultdict(set)
    for cookie, netns_cookie in where.items():
        if netns_cookie != home:
            wanted[netns_cookie].add(cookie)
    for netns_cookie, cookies in wanted.items():
        pid = pids.get(netns_cookie, 0)
        netns = (_of_process(pid, netns_cookie) if pid else None) or NetNS.find_cookie(netns_cookie)
        if netns is not None:
            with netns:
                yield netns, cookies


def _of_process(pid: int, cookie: int) -> NetNS | None:
    """The namespace of a process, if it is that one."""
    try:
        netns = NetNS.from_arg(pid)
    except DmmError:
        return None
    if netns.cookie == cookie:
        return netns
    netns.close()
    return None


def _read(cookies: Collection[int]) -> dict[int, TcpSocket]:
    return {live.cookie: live for live in sockdiag.iter_tcp(cookies)}


def _destroy(cookies: Collection[int]) -> None:
    sockdiag.destroy([one for one in sockdiag.connections() if one.cookie in cookies])
