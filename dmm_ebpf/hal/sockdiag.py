# SPDX-License-Identifier: Apache-2.0
"""TCP sockets of a namespace by sock_diag(7): listing with tcp_info and mark, and SOCK_DESTROY.
UDP sockets are listed alone.

The messages are read with struct instead of pyroute2's DiagSocket, which cannot destroy,
does not report errors, and decodes every attribute of every socket of a host. Needs
CAP_NET_ADMIN for marks.

Refused: destroying listeners.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dmm_ebpf.hal.netlink import attributes, explained, messages
from dmm_ebpf.tcpstates import NUMBERS

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_INFO = 2
_INET_DIAG_MARK = 15
_INET_DIAG_ULP_INFO = 19
_INET_DIAG_CGROUP_ID = 21
_INET_ULP_INFO_MPTCP, _MPTCP_SUBFLOW_ATTR_FLAGS = 3, 8
_MPTCP_SUBFLOW_FLAG_MCAP_REM = 1

IPPROTO_TCP = int(socket.IPPROTO_TCP)
TCP_LISTEN = NUMBERS["LISTEN"]
_SYN_SENT, _TIME_WAIT, _CLOSE = (NUMBERS[n] for n in ("SYN_SENT", "TIME_WAIT", "CLOSE"))
_RECEIVE_BYTES = 1 << 18
_DESTROY_AT_ONCE = 64
_ALL = (1 << 13) - 1
_LIVE = _ALL & ~(1 << 0 | 1 << TCP_LISTEN | 1 << _TIME_WAIT | 1 << _CLOSE)

_REQ = struct.Struct("=BBBxI")
_ID = struct.Struct("=2s2s16s16sI8s")
_COOKIE = struct.Struct("=Q")
_MSG_HEAD = struct.Struct("=BBBB")
_MSG_TAIL = struct.Struct("=IIIII")


@dataclass(frozen=True)
class TcpSocket:
    """One TCP socket. Addresses are text, IPv4 ones of dual-stack sockets as dotted quad; counters
    as in tcp_info.

    cookie is the kernel's socket cookie (bpf_get_socket_cookie); mark is None when the kernel did
    not tell it. mptcp: of a subflow of an MPTCP socket whether the peer speaks MPTCP; None: it is
    none.
    """

    family: int
    state: int
    laddr: str
    lport: int
    raddr: str
    rport: int
    cookie: int
    uid: int
    inode: int
    mark: int | None = None
    bytes_acked: int = 0
    bytes_received: int = 0
    rtt_us: int = 0
    rttvar_us: int = 0
    min_rtt_us: int = 0
    total_retrans: int = 0
    snd_cwnd_pkts: int = 0
    delivery_rate_Bps: int = 0  # noqa: N815  bytes per second, as everywhere
    ident: bytes = b""
    mptcp: bool | None = None


def _text(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def _u32(info: bytes, offset: int) -> int:
    return int(struct.unpack_from("=I", info, offset)[0]) if len(info) >= offset + 4 else 0


def _u64(info: bytes, offset: int) -> int:
    return int(struct.unpack_from("=Q", info, offset)[0]) if len(info) >= offset + 8 else 0


def _parse(body: bytes) -> TcpSocket:
    """struct inet_diag_msg and its attributes; offsets of tcp_info as in linux/tcp.h, which
    only ever grows.
    """
    family, state, _timer, _retrans = _MSG_HEAD.unpack_from(body, 0)
    ident = body[4 : 4 + _ID.size]
    sport, dport, src, dst, _ifindex, cookie = _ID.unpack(ident)
    _expires, _rqueue, _wqueue, uid, inode = _MSG_TAIL.unpack_from(body, 4 + _ID.size)
    mark: int | None = None
    info = ulp = b""
    for kind, value in attributes(body, 4 + _ID.size + _MSG_TAIL.size):
        if kind == _INET_DIAG_MARK:
            mark = _u32(value, 0)
        elif kind == _INET_DIAG_INFO:
            info = value
        elif kind == _INET_DIAG_ULP_INFO:
            ulp = value
    return TcpSocket(
        family=family,
        state=state,
        laddr=_text(family, src),
        lport=int.from_bytes(sport, "big"),
        raddr=_text(family, dst),
        rport=int.from_bytes(dport, "big"),
        cookie=int(struct.unpack("=Q", cookie)[0]),
        uid=uid,
        inode=inode,
        mark=mark,
        bytes_acked=_u64(info, 120),
        bytes_received=_u64(info, 128),
        rtt_us=_u32(info, 68),
        rttvar_us=_u32(info, 72),
        min_rtt_us=_u32(info, 148),
        total_retrans=_u32(info, 100),
        snd_cwnd_pkts=_u32(info, 80),
        delivery_rate_Bps=_u64(info, 160),
        ident=ident,
        mptcp=_speaks_mptcp(ulp) if ulp else None,
    )


def _speaks_mptcp(ulp: bytes) -> bool | None:
    """See TcpSocket. ulp: the attributes within INET_DIAG_ULP_INFO."""
    subflow = dict(attributes(ulp)).get(_INET_ULP_INFO_MPTCP)
    if subflow is None:
        return None
    flags = dict(attributes(subflow)).get(_MPTCP_SUBFLOW_ATTR_FLAGS, b"")
    return bool(_u32(flags, 0) & _MPTCP_SUBFLOW_FLAG_MCAP_REM)


def _message(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


def _cookie(body: bytes) -> int:
    return int(_COOKIE.unpack_from(body, 4 + _ID.size - _COOKIE.size)[0])


def _dump(sock: socket.socket, family: int, states: int, proto: int) -> Iterator[bytes]:
    """The body of each answer: struct inet_diag_msg and attributes."""
    request = _REQ.pack(family, proto, 1 << (_INET_DIAG_INFO - 1), states) + bytes(_ID.size)
    sock.send(_message(_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, request))
    while True:
        for kind, body in messages(sock.recv(_RECEIVE_BYTES)):
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "inet_diag")
            yield body


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.settimeout(10)
    return sock


def _each(states: int, proto: int = IPPROTO_TCP) -> Iterator[bytes]:
    with _open() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            yield from _dump(sock, family, states, proto)


_LISTING = {errno.ENOENT: "TCP in sock_diag (CONFIG_INET_TCP_DIAG; modprobe tcp_diag)"}
_LISTING_UDP = {errno.ENOENT: "UDP in sock_diag (CONFIG_INET_UDP_DIAG; modprobe udp_diag)"}
_DESTROYING = {errno.EOPNOTSUPP: "INET_DIAG_DESTROY (CONFIG_INET_DIAG_DESTROY)"}


def list_tcp(*, listeners: bool = True) -> list[TcpSocket]:
    """TCP sockets, IPv4 then IPv6."""
    states = _ALL if listeners else _ALL & ~(1 << TCP_LISTEN)
    with explained("list TCP sockets", _LISTING):
        return [_parse(body) for body in _each(states)]


def iter_tcp(cookies: Container[int]) -> Generator[TcpSocket, None, None]:
    """Those connections whose cookies are asked for, one by one as the kernel tells of them."""
    with explained("list TCP sockets", _LISTING):
        for body in _each(_ALL & ~(1 << TCP_LISTEN)):
            if _cookie(body) in cookies:
                yield _parse(body)


def iter_udp(cookies: Container[int]) -> Generator[TcpSocket, None, None]:
    """The same of UDP sockets, connected (ESTABLISHED) or not (CLOSE); they have no tcp_info."""
    with explained("list UDP sockets", _LISTING_UDP):
        for body in _each(_ALL, int(socket.IPPROTO_UDP)):
            if _cookie(body) in cookies:
                yield _parse(body)


def open_cookies(cookies: set[int]) -> set[int]:
    """Which of these cookies are connections' that there are."""
    with explained("list TCP sockets", _LISTING):
        return {_cookie(body) for body in _each(_ALL & ~(1 << TCP_LISTEN))} & cookies


class SocketId(NamedTuple):
    """A connection, told apart from every other one that ever had its 5-tuple (struct
    inet_diag_sockid has the cookie).

    Ports are 2 bytes and addresses 16, in network order; of an IPv4 address the first 4.
    """

    family: int
    raw: bytes

    @property
    def pair(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Local port, remote port, local address, remote address."""
        return self.raw[:2], self.raw[2:4], self.raw[4:20], self.raw[20:36]

    @property
    def cookie(self) -> int:
        """bpf_get_socket_cookie()"""
        return int(_COOKIE.unpack_from(self.raw, _ID.size - _COOKIE.size)[0])


def connections() -> list[SocketId]:
    """Every connection of the namespace that is, or was, open. Listeners are none."""
    with explained("list TCP sockets", _LISTING):
        return [
            SocketId(body[0], body[_MSG_HEAD.size : _MSG_HEAD.size + _ID.size])
            for body in _each(_LIVE & ~(1 << _SYN_SENT))
        ]


class Owned(NamedTuple):
    """A TCP socket, listener or connection, and whose it is. Ports are 2 bytes and addresses 16, in
    network order, IPv4 ones v4-mapped. cgroup_id: of the cgroup that it was made in. device:
    ifindex that it is bound to, or 0.
    """

    state: int
    family: int
    laddr: bytes
    lport: bytes
    raddr: bytes
    rport: bytes
    device: int
    cookie: int
    uid: int
    inode: int
    mark: int
    cgroup_id: int
    mptcp: bool

    @property
    def is_open(self) -> bool:
        """Whether it is a connection that is, or was, open, and not a part of
        an MPTCP connection.
        """
        return bool(_LIVE & ~(1 << _SYN_SENT) & 1 << self.state) and not self.mptcp


_MAPPED = b"\0" * 10 + b"\xff\xff"


def _owned(body: bytes) -> Owned:
    family, state, _timer, _retrans = _MSG_HEAD.unpack_from(body, 0)
    lport, rport, laddr, raddr, device, cookie = _ID.unpack_from(body, _MSG_HEAD.size)
    *_, uid, inode = _MSG_TAIL.unpack_from(body, _MSG_HEAD.size + _ID.size)
    found = dict(attributes(body, _MSG_HEAD.size + _ID.size + _MSG_TAIL.size))
    if family == socket.AF_INET:
        laddr, raddr = _MAPPED + laddr[:4], _MAPPED + raddr[:4]
    elif laddr.startswith(_MAPPED):
        family = int(socket.AF_INET)
    mark = found.get(_INET_DIAG_MARK, b"")
    group = found.get(_INET_DIAG_CGROUP_ID, b"")
    mptcp = b"mptcp" in found.get(_INET_DIAG_ULP_INFO, b"")
    (number,) = _COOKIE.unpack(cookie)
    return Owned(
        state,
        family,
        laddr,
        lport,
        raddr,
        rport,
        device,
        number,
        uid,
        inode,
        _u32(mark, 0),
        _u64(group, 0),
        mptcp,
    )


def owned() -> list[Owned]:
    """Every listener and every connection of the namespace; none that waits for its
    last ACKs alone.
    """
    with explained("list TCP sockets", _LISTING):
        return [_owned(body) for body in _each(_LIVE | 1 << TCP_LISTEN)]


def destroy(sockets: Sequence[SocketId]) -> int:
    """Aborts each, telling its peer; its app sees ECONNABORTED. Returns how many
    were still there.
    """
    gone = 0
    with explained("destroy TCP sockets", _DESTROYING), _open() as sock:
        for first in range(0, len(sockets), _DESTROY_AT_ONCE):
            part = sockets[first : first + _DESTROY_AT_ONCE]
            sock.send(b"".join(_destruction(one) for one in part))
            answers = 0
            while answers < len(part):
                for kind, body in messages(sock.recv(_RECEIVE_BYTES)):
                    code = -struct.unpack_from("=i", body)[0] if kind == _NLMSG_ERROR else 0
                    if code not in (0, errno.ENOENT):  # ENOENT: closed by itself meanwhile
                        raise OSError(code, "SOCK_DESTROY")
                    answers += 1
                    gone += code == 0
    return gone


def _destruction(one: SocketId) -> bytes:
    request = _REQ.pack(one.family, socket.IPPROTO_TCP, 0, _LIVE) + one.raw
    return _message(_SOCK_DESTROY, _NLM_F_REQUEST | _NLM_F_ACK, request)
