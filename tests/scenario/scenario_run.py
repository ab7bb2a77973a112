# SPDX-License-Identifier: Apache-2.0
"""Runs a parsed scenario against a core in virtual time. Strict: a packet that no line expects
fails the scenario.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

from scenario_compare import (
    OPERATORS,
    PORT,
    Flow,
    MismatchError,
    Sent,
    differences,
    flag_text,
    port_of,
)
from scenario_core import ACK, CONFIG, FIN, INNER, LINKS, OUTER, SYN, App, Core, stream
from scenario_grammar import (
    COMPARE,
    LEGS,
    NS,
    IcmpLine,
    Packet,
    Scenario,
    ScenarioError,
    Step,
    duration_ns,
)
from scenario_packets import (
    ACE_SHIFT,
    FLAG_BITS,
    HOST,
    HOST_PORT,
    PEER,
    ROUTER,
    BadPacketError,
    Icmp,
    Tcp,
    checksum,
)

from dmm_ebpf.tcpstates import TCP_STATES

START_NS = 100 * NS["s"]
SLACK_NS = 100 * NS["us"]
RING = 40
STATES = ["-", *(state.name for state in TCP_STATES)]
TIMED_CONFIG = {"keepalive", "time_wait"}


class Run:
    """One scenario on one core."""

    def __init__(self, scenario: Scenario, built: tuple[Any, Any]) -> None:
        self.scenario = scenario
        self.family = 4
        self.mtu = 1500
        self.slack = SLACK_NS
        self.isns = {INNER: 0x22220000, OUTER: 0x33330000}
        self.wrap: int | None = None
        settings = self._settings(scenario.config)
        self.inner_mtu = settings.get("inner_mtu", 1500)
        self.start = START_NS if self.wrap is None else self._wrapping_start(built, settings)
        self.core = Core(built, self.start, settings)
        self.base = self.start
        self.flows: dict[tuple[int, int], Flow] = {}
        self.queue: dict[int, deque[Sent]] = {INNER: deque(), OUTER: deque()}
        self.trace: deque[str] = deque(maxlen=RING)
        self.apps: dict[int, App] = {}
        self.app_on = False
        self.more = False  # another packet comes before the core is asked what it has to send
        self.actions: deque[tuple[str, int, int]] = deque()

    def _settings(self, config: dict[str, str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in config.items():
            if key == "family":
                self.family = int(value)
            elif key == "mtu":
                self.mtu = int(value)
            elif key == "slack":
                self.slack = duration_ns(value)
            elif key == "core_isn":
                self.wrap = int(value)
            elif key in ("isn_inner", "isn_outer"):
                self.isns[LEGS[key[4:]]] = int(value, 0) % 2**32
            elif key in CONFIG:
                value_of: Any = duration_ns(value) if key in TIMED_CONFIG else value
                out[CONFIG[key]] = value.encode() if key == "congestion" else int(value_of)
            else:
                raise ScenarioError(self.scenario.path, 1, f"config has no {key}")
        return out

    def _wrapping_start(self, built: tuple[Any, Any], settings: dict[str, Any]) -> int:
        """The time at which the outer leg's initial sequence number is config's core_isn
        (RFC 6528's clock).
        """

        def isn(now: int) -> int:
            core = Core(built, now, settings)
            syn = Tcp(HOST[self.family], PEER[self.family], HOST_PORT, PORT, 0, 0, SYN)
            core.put(INNER, syn.pack(), LINKS[INNER], self.mtu)
            return int(core.get(OUTER).seq)

        at = START_NS
        step_ns = 10_000_000 * NS["us"] // ((isn(at + 10 * NS["s"]) - isn(at)) % 2**32 or 1)
        for _ in range(60):
            short = (int(self.wrap or 0) - isn(at)) % 2**32
            if short < 2:
                return at
            at += max(short * step_ns * 9 // 10, step_ns)
        raise ScenarioError(self.scenario.path, 1, "no time gives this core_isn")

    # The clock

    def _pull(self) -> None:
        """Takes every packet that the core has now."""
        again = True
        while again:
            again = False
            for leg in (OUTER, INNER):
                while packet := self.core.get(leg):
                    again = True
                    self._note(leg, packet)

    def _note(self, leg: int, packet: Tcp | Icmp) -> None:
        flow = self.flow(leg, port_of(leg, packet))
        if isinstance(packet, Tcp):
            if packet.flags & SYN:
                flow.core_isn = packet.seq
            ts = dict(packet.options).get("ts")
            if ts:
                flow.core_ts_last = ts[0]
                flow.core_ts_first = flow.core_ts_first or ts[0]
        sent = Sent(self.core.now, self.start, leg, packet, flow)
        self.trace.append(str(sent))
        self._check_content(flow, sent)
        if leg == INNER and self.app_on:
            if isinstance(packet, Tcp):
                self.app(packet.sport).packet(packet)
            else:
                self.app(PORT).state = packet.kind
            return
        self.queue[leg].append(sent)

    def _check_content(self, flow: Flow, sent: Sent) -> None:
        packet = sent.packet
        if not isinstance(packet, Tcp) or not packet.payload or flow.core_isn is None:
            return
        at = (packet.seq - flow.core_isn) % 2**32 - 1
        origin = INNER if sent.leg == OUTER else OUTER
        if packet.payload != stream(origin, at, len(packet.payload)):
            raise MismatchError(f"the core sent bytes that were never given to it: {sent}")

    def _settle(self) -> int:
        """Everything that is due at this instant; when to come again."""
        for _ in range(100_000):
            self._pull()
            due = self.core.poll()
            if due > self.core.now:
                return due
        raise MismatchError("the core asks to be polled again and again at the same time")

    def advance(self, to: int, until: int | None = None) -> None:
        """Runs the clock to `to`, or until a packet is there on leg `until`."""
        if self.more and to <= self.core.now:
            return
        while True:
            due = self._settle()
            if until is not None and self.queue[until]:
                return
            if due > to:
                break
            self.core.now = due
        self.core.now = max(self.core.now, to)
        self._settle()

    # The ends

    def flow(self, leg: int, port: int) -> Flow:
        return self.flows.setdefault((leg, port), Flow(self.isns[leg]))

    def app(self, port: int = PORT) -> App:
        self.app_on = True
        if port not in self.apps:
            self.apps[port] = App(
                self.family, port, self.inner_mtu, self.isns[INNER], self._from_app
            )
        return self.apps[port]

    def _from_app(self, tcp: Tcp) -> None:
        self.trace.append(
            f"{(self.core.now - self.start) / NS['s']:.6f} inner < {flag_text(tcp.flags)} ({len(tcp.payload)})"
        )
        self._put(INNER, tcp.dport, tcp.pack(), {})

    def send(self, line: Packet) -> None:
        """A packet line towards the core."""
        pieces = [(line.seq or 0, line.length or 0)]
        if line.each:
            stops = range(line.seq or 0, line.end or 0, line.each)
            pieces = [(at, min(line.each, (line.end or 0) - at)) for at in stops]
        for seq, length in pieces:
            self._send_one(line, seq, length)

    def _send_one(self, line: Packet, seq: int, length: int) -> None:
        port = line.attrs.get("port", PORT)
        flow = self.flow(line.leg, port)
        core_isn = flow.core_isn or 0
        flags = sum(FLAG_BITS[name] for name in line.flags) | line.attrs.get("ace", 0) << ACE_SHIFT
        ack = (core_isn + line.ack if line.ack is not None else 0) % 2**32
        if line.ack is None and flags & ACK:
            raise MismatchError("a packet to the core with the ACK flag needs ack N")
        src, dst = (HOST, PEER) if line.leg == INNER else (PEER, HOST)
        ports = (HOST_PORT, port) if line.leg == INNER else (port, HOST_PORT)
        payload = stream(line.leg, max(seq - ("S" not in line.flags), 0), length)
        if "garble" in line.attrs:
            payload = bytes(byte ^ 0xFF for byte in payload)
        tcp = Tcp(
            src[self.family], dst[self.family], *ports, flow.isn + seq, ack, flags,
            flow.win if line.win is None else int(line.win),
            self._in_options(line, flow, core_isn), payload,
            line.attrs.get("tos", 0), line.attrs.get("urg", 0), ttl=line.attrs.get("ttl", 64),
            label=line.attrs.get("label", 0),
        )  # fmt: skip
        if "src" in line.attrs:
            tcp.src = {
                4: {0: "0.0.0.0", 1: "224.0.0.1", 2: "255.255.255.255"},
                6: {0: "::", 1: "ff02::1", 2: "::ffff:192.0.2.9"},
            }[self.family][line.attrs["src"]]
        if "S" in line.flags:
            flow.ts = any(name == "ts" for name, _ in tcp.options)
        self.trace.append(
            f"{(self.core.now - self.start) / NS['s']:.6f} {'inner' if line.leg == INNER else 'outer'} < "
            f"{line.flags} {seq}:{seq + length}({length}) ack {line.ack}"
        )
        self._put(line.leg, port, self._bend(tcp, line.attrs), line.attrs)
        self.more = "more" in line.attrs
        if not self.more:
            self._settle()

    def _put(self, leg: int, port: int, data: bytes, attrs: dict[str, int]) -> None:
        link = attrs.get("link", LINKS[leg])
        if leg == INNER:
            self.flow(OUTER, port).link = link or self.flow(OUTER, port).link
        mtu, csum_ok = attrs.get("mtu", self.mtu), bool(attrs.get("csum_ok"))
        self.core.put(leg, data, link, mtu, csum_ok, attrs.get("gso", 0))

    def _in_options(
        self, line: Packet, flow: Flow, core_isn: int
    ) -> list[tuple[str, tuple[int, ...]]]:
        out: list[tuple[str, tuple[int, ...]]] = []
        names = {name for name, _ in line.options or []}
        clock = flow.ts_base + (self.core.now - self.start) // NS["ms"]
        if flow.ts and not names & {"ts", "nots"} and "S" not in line.flags:
            out.append(("ts", (clock, flow.core_ts_last)))
        for name, values in line.options or []:
            if name == "sack":
                out.append((name, tuple(core_isn + int(v or 0) for v in values)))
            elif name == "ts":
                value, echo = values
                out.append(
                    (
                        name,
                        (
                            clock if value is None else value,
                            flow.core_ts_last if echo is None else flow.core_ts_first + echo,
                        ),
                    )
                )
            elif name != "nots":
                out.append((name, tuple(int(v or 0) for v in values)))
        return out

    def _bend(self, tcp: Tcp, attrs: dict[str, int]) -> bytes:
        data = bytearray(tcp.pack(attrs.get("doff")))
        ip_len = 20 if self.family == 4 else 40
        if "badsum" in attrs:
            data[ip_len + 16] ^= 0x55
        if "badipsum" in attrs:
            data[10] ^= 0x55
        if "frag" in attrs:
            data[6:8] = b"\x20\x00"
            data[10:12] = b"\0\0"
            data[10:12] = checksum(bytes(data[:20])).to_bytes(2, "big")
        if "truncate" in attrs:
            data = data[: attrs["truncate"]]
        return bytes(data) + b"\0" * attrs.get("pad", 0)

    def send_icmp(self, line: IcmpLine) -> None:
        """An ICMP error that quotes a segment of the core's."""
        port = line.attrs.get("port", PORT)
        flow = self.flow(line.leg, port)
        src, dst = (HOST, PEER) if line.leg == OUTER else (PEER, HOST)
        ports = (HOST_PORT, port) if line.leg == OUTER else (port, HOST_PORT)
        seq = (flow.core_isn or 0) + (line.quote or 0)
        quoted = Tcp(src[self.family], dst[self.family], *ports, seq, 0, ACK)
        sender = ROUTER if line.leg == OUTER else HOST
        error = Icmp(sender[self.family], src[self.family], line.kind, line.mtu or 0, *ports, seq)
        data = bytearray(error.pack(quoted))
        if "badsum" in line.attrs:
            data[22 if self.family == 4 else 42] ^= 0x55
        self.trace.append(
            f"{(self.core.now - self.start) / NS['s']:.6f} < icmp {line.kind} quote {line.quote}"
        )
        self._put(line.leg, port, bytes(data[: line.attrs.get("truncate", len(data))]), line.attrs)
        self._settle()

    # Expectations

    def expect(self, step: Step, line: Packet | IcmpLine, at: int) -> None:
        """A packet line from the core, or a run of them."""
        if isinstance(line, Packet) and line.each:
            seq = line.seq
            while seq is not None and line.end is not None and seq < line.end:
                n = min(line.each, line.end - seq)
                one = Packet(
                    **{**line.__dict__, "seq": seq, "end": seq + n, "length": n, "each": None}
                )
                self._expect_one(step, one, at)
                seq += n
            return
        self._expect_one(step, line, at)

    def _expect_one(self, step: Step, line: Packet | IcmpLine, at: int) -> None:
        slack = self.slack if step.slack_ns is None else step.slack_ns
        queue = self.queue[line.leg]
        if not queue:
            self.advance(at + slack, until=line.leg)
        if not queue:
            raise MismatchError("no packet came")
        sent = queue.popleft()
        wrong = differences(line, sent)
        if abs(sent.at - at) > slack:
            off = (sent.at - self.base) / NS["ms"]
            wrong.insert(
                0,
                f"time: {off:.3f} ms after the line before, "
                f"{(at - self.base) / NS['ms']:.3f} ± {slack / NS['ms']:g} wanted",
            )
        if wrong:
            raise MismatchError(f"got {sent}\n    " + "\n    ".join(wrong))
        self.last_at = sent.at

    def nothing_left(self) -> None:
        """Fails if the core sent what no line has expected."""
        for leg in (OUTER, INNER):
            if self.queue[leg]:
                raise MismatchError(
                    f"before this line the core sent {self.queue[leg][0]}, which no line expects"
                )

    # Words

    def _do_open(self, words: list[str]) -> None:
        """Both legs of a connection: see docs/conformance.md."""
        kind, *rest = words
        options = dict(word.split("=", 1) for word in rest)
        without = set(options.get("no", "").split(","))
        flow = self.flow(OUTER, int(options.get("port", PORT)))
        flow.win = int(options.get("win", 65535))
        rtt = duration_ns(options.get("rtt", "20ms"))
        syn_options: list[tuple[str, tuple[int | None, ...]]] = []
        if "mss" not in without:
            syn_options.append(("mss", (int(options.get("mss", "1460")),)))
        syn_options += [("sackOK", ())] if "sack" not in without else []
        syn_options += [("ts", (None, None))] if "ts" not in without else []
        syn_options += (
            [("wscale", (int(options.get("wscale", "7")),))] if "wscale" not in without else []
        )
        attrs = {"port": int(options.get("port", PORT))}
        app = self.app(attrs["port"])
        syn_win = str(
            min(flow.win << (0 if "wscale" in without else int(options.get("wscale", "7"))), 65535)
        )
        if kind == "active":
            app.connect()
            self._take(SYN)
            self.advance(self.core.now + rtt)
            self.send(Packet(OUTER, True, "S.", 0, 0, 0, None, 1, syn_win, syn_options, attrs))
            self._take(ACK)
        elif kind == "passive":
            self.send(Packet(OUTER, True, "S", 0, 0, 0, None, None, syn_win, syn_options, attrs))
            self._take(SYN | ACK)
            self.advance(self.core.now + rtt)
            self.send(Packet(OUTER, True, ".", 1, 1, 0, None, 1, None, None, attrs))
        else:
            raise MismatchError(f"open is active or passive, not {kind}")
        if app.state != "open":
            raise MismatchError(f"the application's socket is {app.state}")
        self.nothing_left()

    def _take(self, flags: int) -> None:
        self._settle()
        if not self.queue[OUTER]:
            raise MismatchError(f"the core did not send {flag_text(flags)}")
        sent = self.queue[OUTER].popleft()
        if not isinstance(sent.packet, Tcp) or sent.packet.flags & (SYN | ACK | FIN | 4) != flags:
            raise MismatchError(f"{flag_text(flags)} wanted, got {sent}")

    def _fetch_actions(self) -> None:
        while action := self.core.action():
            self.actions.append(action)

    def _do_unreachable(self, words: list[str]) -> None:
        """Refuses the oldest OWN."""
        conn = self._find_action("own")[1]
        self.core.lib.dmm_core_unreachable(
            self.core.ptr, conn, getattr(errno, words[0]), self.core.now
        )
        self._settle()

    def _find_action(self, name: str) -> tuple[str, int, int]:
        self._fetch_actions()
        while self.actions:
            action = self.actions.popleft()
            if action[0] == name:
                return action
        raise MismatchError(f"no action {name} is there")

    def _do_action(self, words: list[str]) -> None:
        _, _, error = self._find_action(words[0])
        wanted = 0 if len(words) < 2 else getattr(errno, words[1])
        if words[0] == "closed" and error != wanted:
            raise MismatchError(
                f"closed with {errno.errorcode.get(error, error)}, {words[1:] or 'no error'} wanted"
            )

    def _do_no(self, words: list[str]) -> None:
        """`no action [NAME]`: none is waiting."""
        self._fetch_actions()
        found = [a for a in self.actions if len(words) < 2 or a[0] == words[1]]
        if words[:1] != ["action"] or found:
            raise MismatchError(f"there is {found[0][0] if found else 'no such line'}")

    def _do_state(self, words: list[str]) -> None:
        port = PORT
        for word in words:
            if word.startswith("port="):
                port = int(word[5:])
        info = self.core.info(port)
        for word in words:
            leg, _, wanted = word.partition("=")
            if word == "gone":
                if info:
                    raise MismatchError(f"it is there: {self._states(info)}")
            elif leg != "port":
                if not info:
                    raise MismatchError("there is no such connection")
                if STATES[info[f"{leg}_state"]] != wanted:
                    raise MismatchError(f"it is {self._states(info)}")

    @staticmethod
    def _states(info: dict[str, Any]) -> str:
        return f"inner={STATES[info['inner_state']]} outer={STATES[info['outer_state']]}"

    def _compare_all(self, words: list[str], value_of: Any) -> None:
        for word in words:
            match = COMPARE.match(word)
            if not match:
                raise MismatchError(f"{word!r} is no comparison")
            got = value_of(match["name"])
            want = match["value"] if isinstance(got, str) else int(match["value"])
            if not OPERATORS[match["op"]](got, want):
                raise MismatchError(f"{match['name']} is {got}, {match['op']}{want} wanted")

    def _do_info(self, words: list[str]) -> None:
        info = self.core.info(PORT)
        if info is None:
            raise MismatchError("there is no such connection")
        self._compare_all(words, info.__getitem__)

    def _do_count(self, words: list[str]) -> None:
        self._compare_all(words, self.core.counter)

    def _do_quiet(self, _words: list[str]) -> None:
        self.nothing_left()

    def _do_wait(self, _words: list[str]) -> None:
        """Time passes; what comes meanwhile must be expected by the lines that follow."""

    def _do_skip(self, words: list[str]) -> None:
        self.queue[LEGS[words[0]]].clear()

    def _do_isn(self, words: list[str]) -> None:
        """`isn outer +N` moves, `isn outer N` sets: the far end's next initial sequence number."""
        flow = self.flow(LEGS[words[0]], PORT)
        value = int(words[1], 0)
        flow.isn = (flow.isn + value if words[1][0] in "+-" else value) % 2**32
        flow.core_isn = None

    def _do_abort(self, _words: list[str]) -> None:
        self.core.lib.dmm_core_abort_all(self.core.ptr, self.core.now)
        self._settle()

    def _do_app(self, words: list[str]) -> None:
        """The application on the inner leg acts, or is asked what it saw."""
        app, verb = self.app(), words[0]
        facts = {"eof": app.eof, "dead": app.dead, "not-eof": not app.eof, "not-dead": not app.dead}
        match verb:
            case "connect" | "close" | "reset" | "hold":
                getattr(app, verb)()
            case "listen" | "refuse":
                app.listen(verb == "refuse")
            case "write":
                app.write(int(words[1]))
            case "window":
                app.set_window(int(words[1]))
            case "got":
                if app.got != int(words[1]):
                    raise MismatchError(f"the application got {app.got} bytes")
            case "holds":
                if app.unsent != int(words[1]):
                    raise MismatchError(f"the application's kernel holds {app.unsent} unsent bytes")
            case "is":
                if app.state != words[1]:
                    raise MismatchError(f"the application's socket is {app.state}")
            case _ if verb in facts:
                if not facts[verb]:
                    raise MismatchError(f"the application's socket: {facts}")
            case _:
                raise MismatchError(f"app does not know {verb}")
        self._settle()

    # The whole

    def step(self, step: Step) -> None:
        """One line."""
        at = self.start + step.at_ns if step.absolute else self.base + step.at_ns
        if at < self.base:
            raise MismatchError("its time has passed")
        self.last_at = at
        if step.packet is not None and not step.packet.inbound:
            self.expect(step, step.packet, at)
            self.base = max(self.base, self.last_at)
            return
        if step.packet is not None or step.verb in (
            "open",
            "app",
            "quiet",
            "unreachable",
            "abort",
        ):
            self.advance(at)
            if step.verb != "app" or step.words[0] in (
                "connect",
                "write",
                "close",
                "reset",
                "window",
            ):
                self.nothing_left()
        else:
            self.advance(at)
        if isinstance(step.packet, Packet):
            self.send(step.packet)
        elif isinstance(step.packet, IcmpLine):
            self.send_icmp(step.packet)
        else:
            getattr(self, f"_do_{step.verb}")(step.words)
        self.base = max(self.base, self.core.now)

    def run(self) -> None:
        """The scenario to its end; ScenarioError says which line failed, and how."""
        last = self.scenario.steps[-1]
        for step in self.scenario.steps:
            try:
                self.step(step)
            except (
                MismatchError,
                BadPacketError,
                AssertionError,
                KeyError,
                AttributeError,
                ValueError,
                IndexError,
            ) as error:
                raise self._failure(
                    step, str(error) if not isinstance(error, KeyError) else f"there is no {error}"
                ) from error
        try:
            self._settle()
            self.nothing_left()
        except (MismatchError, BadPacketError) as error:
            raise self._failure(last, f"after the last line: {error}") from error

    def _failure(self, step: Step, why: str) -> ScenarioError:
        trace = "\n".join(f"    {line}" for line in list(self.trace)[-16:])
        return ScenarioError(
            self.scenario.path,
            step.line,
            f"{why}\n  expected: {step.text}\n  what happened last:\n{trace}",
        )
