# SPDX-License-Identifier: Apache-2.0
"""The core under a virtual clock, and an application's kernel for its inner leg.

Core wraps api.h by cffi. App plays the kernel socket of an application on the inner leg, which
is lossless: it answers SYNs, acknowledges all at once, obeys the core's window, and remembers
what it got.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scenario_packets import HOST, HOST_PORT, PEER, Tcp, read

INNER, OUTER = 0, 1
FIN, SYN, RST, ACK = 1, 2, 4, 16
META = ("link", "family")
GSO_TCP = {4: 1, 6: 4}  # enum dmm_vnet, by the version of IP
VNET = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset")
DATA_VALID = 2
CONFIG = {
    "memory": "memory_bytes",
    "connections": "max_connections",
    "inner_mtu": "inner_mtu",
    "gso": "inner_gso_max",
    "sndbuf": "sndbuf_bytes",
    "rcvbuf": "rcvbuf_bytes",
    "syn_retries": "syn_retries",
    "keepalive": "keepalive_ns",
    "time_wait": "time_wait_ns",
    "congestion": "congestion",
    "ecn_off": "ecn_off",
    "half_open": "half_open_max",
    "syn_cookies": "syn_cookies",
    "latency": "latency",
    "budget": "redundancy_budget_ppm",
    "residual": "redundancy_residual_ppm",
    "parity": "parity_most_ppm",
    "accecn_off": "accecn_off",
    "negotiate": "negotiate",
    "seed": "seed",
}
LINKS = (
    9,
    77,
)  # of what comes from the host's kernel, and from the peer, unless a line says otherwise
LARGEST = 65535


def stream(origin: int, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of what the end beyond a leg sends; any byte tells
    where it belongs.
    """
    return bytes(
        ((i * 31) ^ (i >> 8) ^ (origin * 0x55)) & 0xFF for i in range(start, start + length)
    )


class Core:
    """One core. now is in ns, moved by whoever runs it."""

    def __init__(self, built: tuple[Any, Any], now: int, settings: dict[str, Any]) -> None:
        self.ffi, self.lib = built
        self.now = now
        known = {field for field, _ in self.ffi.typeof("struct dmm_core_config").fields}
        given = {"seed": 3, "inner_gso_max": LARGEST} | {
            k: v for k, v in settings.items() if k in known
        }
        raw = self.lib.dmm_core_create(self.ffi.new("struct dmm_core_config *", given))
        assert raw != self.ffi.NULL, f"the core refuses {given}"
        self.ptr = self.ffi.gc(raw, self.lib.dmm_core_destroy)
        self.buffer = self.ffi.new(f"uint8_t[{LARGEST}]")
        self.meta = self.ffi.new("struct dmm_tx_meta *")

    def put(
        self, leg: int, data: bytes, link: int, mtu: int, csum_ok: bool = False, gso: int = 0
    ) -> None:
        """A packet arrives on leg; link and mtu are of its way on the outer leg. gso: payload
        of each segment in it.
        """
        exact = self.ffi.new("uint8_t[]", data) if data else self.buffer
        meta = self.ffi.new("struct dmm_rx_meta *", {"link": link, "mtu": mtu})
        meta.vnet.flags = DATA_VALID if csum_ok else 0
        if gso:
            meta.vnet.gso_type, meta.vnet.gso_size = GSO_TCP[data[0] >> 4], gso
        self.lib.dmm_core_input(self.ptr, leg, exact, len(data), meta, self.now)

    def get(self, leg: int) -> Any:
        """The next packet for leg, or None. Raises BadPacketError."""
        room = LARGEST if leg == INNER else 9000
        n = self.lib.dmm_core_output(self.ptr, leg, self.buffer, room, self.meta, self.now)
        if not n:
            return None
        meta = {name: getattr(self.meta, name) for name in META}
        meta |= {name: getattr(self.meta.vnet, name) for name in VNET}
        return read(bytes(self.ffi.buffer(self.buffer, n)), meta)

    def poll(self) -> int:
        """Runs timers; when to come again."""
        return int(self.lib.dmm_core_poll(self.ptr, self.now))

    def action(self) -> tuple[str, int, int] | None:
        """The oldest action: (name in lower case, connection, error)."""
        action = self.ffi.new("struct dmm_action *")
        if not self.lib.dmm_core_action(self.ptr, action):
            return None
        names = {getattr(self.lib, f"DMM_ACTION_{n}"): n for n in ("OWN", "DISOWN", "CLOSED")}
        return names.get(action.type, f"action {action.type}").lower(), action.conn, action.error

    def info(self, port: int) -> dict[str, Any] | None:
        """Fields of the connection with that remote port; None: there is none."""
        info = self.ffi.new("struct dmm_conn_info *")
        index = 0
        while self.lib.dmm_core_conn_info(self.ptr, index, info):
            index += 1
            if info.pair.rport_be == int.from_bytes(port.to_bytes(2, "big"), "little"):
                names = [name for name, _ in self.ffi.typeof("struct dmm_conn_info").fields]
                out = {name: getattr(info, name) for name in names if name != "pair"}
                out["congestion"] = self.ffi.string(out["congestion"]).decode()
                return out
        return None

    def counter(self, name: str) -> int:
        """DMM_CORE_NAME's value; AttributeError if there is no such counter."""
        return int(
            self.lib.dmm_core_counter(self.ptr, getattr(self.lib, f"DMM_CORE_{name.upper()}"))
        )


class App:
    """The kernel socket on the inner leg. send(Tcp) gives the core a packet."""

    def __init__(
        self, family: int, port: int, mtu: int, isn: int, send: Callable[[Tcp], None]
    ) -> None:
        self.family, self.port, self.send = family, port, send
        self.mss = mtu - (40 if family == 4 else 60)
        self.state = "closed"
        self.refuse = False
        self.held: list[Tcp] | None = None  # None: nothing is held
        self.isn, self.core_isn = isn, 0
        self.nxt = self.rcv = self.edge = 0
        self.scale = 0
        self.window = LARGEST << 7
        self.unsent = self.got = 0
        self.closing = self.fin_sent = self.eof = self.dead = False

    def _emit(
        self, flags: int, options: Any = (), payload: bytes = b"", seq: int | None = None
    ) -> None:
        window = min(self.window, LARGEST) if flags & SYN else self.window >> 7
        self.send(
            Tcp(
                HOST[self.family], PEER[self.family], HOST_PORT, self.port,
                self.isn + (self.nxt if seq is None else seq),
                self.core_isn + self.rcv if flags & ACK else 0,
                flags, window, list(options), payload,
            )
        )  # fmt: skip

    def _syn_options(self) -> list[tuple[str, tuple[int, ...]]]:
        return [
            ("mss", (self.mss,)),
            ("nop", ()),
            ("nop", ()),
            ("sackOK", ()),
            ("nop", ()),
            ("wscale", (7,)),
        ]

    def connect(self) -> None:
        """connect(2)."""
        self.state = "connecting"
        self._emit(SYN, self._syn_options(), seq=0)

    def write(self, length: int) -> None:
        """So many bytes more of the application's stream."""
        self.unsent += length
        self._push()

    def close(self) -> None:
        """shutdown(SHUT_WR)."""
        self.closing = True
        self._push()

    def reset(self) -> None:
        """close(2) with SO_LINGER 0."""
        self._emit(RST | ACK)
        self.state = "reset"

    def set_window(self, window: int) -> None:
        """The application stops or goes on reading."""
        self.window = window
        self._emit(ACK)

    def _push(self) -> None:
        while self.unsent and self.nxt < self.edge:
            n = min(self.unsent, self.edge - self.nxt, 60000)
            payload = stream(INNER, self.nxt - 1, n)
            self.unsent -= n
            self.nxt += n
            self._emit(ACK, payload=payload, seq=self.nxt - n)
        if self.closing and not self.unsent and not self.fin_sent:
            self.fin_sent = True
            self.nxt += 1
            self._emit(ACK | FIN, seq=self.nxt - 1)

    def packet(self, tcp: Tcp) -> None:
        """A packet of the core's for this socket."""
        if self.held is not None:
            self.held.append(tcp)
            return
        if tcp.flags & RST:
            self.dead = True
            self.state = "reset"
        elif tcp.flags & SYN:
            self._syn(tcp)
        elif self.state == "open":
            if tcp.flags & ACK:
                self.edge = max(self.edge, (tcp.ack - self.isn) % 2**32 + (tcp.win << self.scale))
            self._data(tcp)
            self._push()
        elif not tcp.flags & FIN and not tcp.payload:
            return
        else:
            self._emit(RST, seq=(tcp.ack - self.isn) % 2**32)

    def repeat(self) -> None:
        """The kernel's SYN or SYN-ACK is not acknowledged, and goes again."""
        self._emit(SYN if self.state == "connecting" else SYN | ACK, self._syn_options(), seq=0)

    def hold(self) -> None:
        """The kernel is slow: what comes waits."""
        self.held = []

    def listen(self, refuse: bool) -> None:
        """Answers SYNs; what was held comes now."""
        self.refuse = refuse
        waiting, self.held = self.held or [], None
        for tcp in waiting:
            self.packet(tcp)

    def _syn(self, tcp: Tcp) -> None:
        answer = not tcp.flags & ACK
        if answer and self.refuse:
            self.core_isn, self.rcv = tcp.seq, 1
            self._emit(RST | ACK, seq=-self.isn)
            return
        self.core_isn, self.rcv, self.nxt = tcp.seq, 1, 1
        self.scale = dict(tcp.options).get("wscale", (0,))[0]
        self.edge = 1 if answer else 1 + tcp.win
        self.state = "open"
        if answer:
            self._emit(SYN | ACK, self._syn_options(), seq=0)
        else:
            self._emit(ACK)

    def _data(self, tcp: Tcp) -> None:
        seq = (tcp.seq - self.core_isn) % 2**32
        if not tcp.payload and not tcp.flags & FIN:
            if seq != self.rcv:  # a keep-alive probe
                self._emit(ACK)
            return
        if seq == self.rcv:
            room = min(len(tcp.payload), self.window)
            wanted = stream(OUTER, self.got, room)
            assert tcp.payload[:room] == wanted, (
                f"the application got other bytes than were sent at {self.got}"
            )
            self.got += room
            self.rcv += room
            if tcp.flags & FIN and room == len(tcp.payload):
                self.rcv += 1
                self.eof = True
        self._emit(ACK)
