# SPDX-License-Identifier: Apache-2.0
"""hal.sockdiag on real sockets."""

from __future__ import annotations

import select
import socket
import struct

import pytest
from hal_lab import hosts, link, listen

from dmm_ebpf.hal import sockdiag

SO_MARK, SO_COOKIE = 36, 57
MARK = 0x0DD00000


@pytest.mark.parametrize(
    ("family", "peer"), [(socket.AF_INET, "10.9.1.2"), (socket.AF_INET6, "fd09:1::2")]
)
def test_listing_and_destroying(family, peer):
    with hosts(2) as (a, b):
        link(a, b)
        with (
            listen(b, family) as server,
            a.ns.socket(family, socket.SOCK_STREAM) as ours,
            a.ns.socket(family, socket.SOCK_STREAM) as other,
            a.ns.socket(family, socket.SOCK_STREAM) as listener,
        ):
            port = server.getsockname()[1]
            ours.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK | 0x7)
            other.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK + (1 << 20))
            listener.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
            listener.listen()
            ours.connect((peer, port))
            other.connect((peer, port))
            accepted = [server.accept()[0] for _ in range(2)]
            ours.sendall(b"x" * 1000)
            assert len(accepted[0].recv(2000)) == 1000
            accepted[0].sendall(b"y" * 500)
            assert len(ours.recv(2000)) == 500
            found = a.ns.run_in(sockdiag.list_tcp, listeners=False)
            assert len(found) == 2
            (item,) = (one for one in found if one.mark == MARK | 0x7)
            assert (item.laddr, item.lport) == ours.getsockname()[:2]
            assert (item.raddr, item.rport) == (peer, port)
            assert (
                item.cookie
                == struct.unpack("=Q", ours.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
            )
            assert (item.state, item.bytes_acked, item.bytes_received) == (1, 1001, 500)
            assert item.rtt_us > 0
            assert len(a.ns.run_in(sockdiag.list_tcp)) == 3
            [again] = a.ns.run_in(lambda: list(sockdiag.iter_tcp({item.cookie})))
            assert (again.cookie, again.bytes_acked) == (item.cookie, 1001)
            assert not a.ns.run_in(lambda: list(sockdiag.iter_tcp(set())))
            every = a.ns.run_in(sockdiag.connections)
            (own,) = [one for one in every if one.cookie == item.cookie]
            assert len(every) == 2, "listeners are none"
            lport, rport, laddr, raddr = own.pair
            size = 4 if family == socket.AF_INET else 16
            assert (int.from_bytes(lport, "big"), int.from_bytes(rport, "big")) == (
                item.lport,
                port,
            )
            assert socket.inet_ntop(family, laddr[:size]) == item.laddr
            assert socket.inet_ntop(family, raddr[:size]) == peer
            assert a.ns.run_in(sockdiag.destroy, [own]) == 1
            with pytest.raises(ConnectionAbortedError):
                ours.recv(1)
            assert select.select([accepted[0]], [], [], 5)[0], "the peer was not told"
            with pytest.raises(ConnectionResetError):
                accepted[0].recv(1)
            other.sendall(b"still here")
            assert accepted[1].recv(100) == b"still here"
            assert a.ns.run_in(sockdiag.destroy, [own]) == 0
            assert any(s.state == sockdiag.TCP_LISTEN for s in a.ns.run_in(sockdiag.list_tcp))
            for conn in accepted:
                conn.close()
