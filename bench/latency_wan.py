# SPDX-License-Identifier: Apache-2.0
"""What `tools/bench latency-wan` measures: messages and datagrams that are echoed, streams of
frames, a page, and a thousand connections at once, over paths that lose; docs/benchmarks.md says
what the figures mean.

Every measurement is made on all sides of bench.latency_paths: messages, datagrams and streams at
the same time, pages in turn, thousands of connections one side after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.latency_paths import (
    DATAGRAM_SIDES,
    LOSSES_PCT,
    RTTS_MS,
    SIDES,
    Ends,
    LatencyPath,
    Times,
    ends,
    paths,
)
from dmm_ebpf.errors import DmmError
from lab import Server, nginx, random_file
from lab.steady import Pace, Sender, Told, echo_server, sink_server, told_by

ITEMS = ("messages", "datagrams", "streams", "page", "many")
ECHO_PORT = 4300
FRAMES_PER_S = 60
STREAMS_MBIT = (2, 8, 25)
STREAM_SLACK_MS = 60.0  # a frame is late when it takes RTT/2 and so much
PAGE_PATH = LatencyPath(100, 12)
MANY_PATH = LatencyPath(100, 12)
# As of a shop's front page: 30 objects from 2 to 100 KB, 0.77 MB together
PAGE_BYTES = tuple(round(2000 * 50 ** (n / 29)) for n in range(30))
PROTOCOLS = ("HTTP/1.1, 6 connections", "HTTP/2, 1 connection")
PAGE_TIMEOUT_S = 120
MESSAGES = Pace(20, 300, 1024, 0.05)
# As of a call: 100 a second of a host, which copies are made of
DATAGRAMS = Pace(5, 600, 200, 0.05, wait_s=3)
MANY = Pace(1000, 10, 1024, 0.0, wait_s=120)
ALL_PATHS = tuple(paths(RTTS_MS, LOSSES_PCT))
STREAM_PATHS = tuple(paths((100.0,), (12.0,)))


@dataclass(frozen=True)
class LatencyPlan:
    """What is run. warm: messages of a connection that come before those that count;
    datagram_warm: a stack takes 10 s to believe a round trip that has grown to be no queue's.
    """

    items: tuple[str, ...] = ITEMS
    paths: tuple[LatencyPath, ...] = ALL_PATHS
    stream_paths: tuple[LatencyPath, ...] = STREAM_PATHS
    messages: Pace = MESSAGES
    warm: int = 60
    datagrams: Pace = DATAGRAMS
    datagram_warm: int = 240
    stream_s: float = 22.0
    stream_warm_s: float = 2.0
    streams: int = 2
    loads: int = 30
    many: Pace = MANY

    @property
    def quick(self) -> LatencyPlan:
        """A few minutes: the one path that matters most, and a clean one, with fewer of all."""
        return replace(
            self,
            paths=tuple(paths((100.0,), (0.0, 12.0))),
            stream_paths=self.stream_paths[:1],
            messages=replace(self.messages, messages=100),
            warm=40,
            stream_s=8.0,
            loads=5,
        )

    @property
    def estimate_s(self) -> float:
        """How long it takes, about."""
        streams = len(self.stream_paths) * len(STREAMS_MBIT) * (self.stream_s + 4)
        each = {
            "messages": len(self.paths) * (self.messages.seconds + 4),
            "datagrams": len(self.paths) * (self.datagrams.seconds + self.datagrams.wait_s + 1),
            "streams": streams,
            "page": self.loads * len(PROTOCOLS) * 10.0,
            "many": 60.0,
        }
        return sum(each[item] + 10 for item in self.items)


@dataclass(frozen=True)
class Found:
    """One cell: what was measured, over which path, by every side. later_ms: what is late."""

    item: str
    what: str
    path: LatencyPath
    sides: tuple[Times, ...]
    later_ms: float | None = None

    @property
    def rival(self) -> Times:
        """Who the others are compared with."""
        return self.sides[0]

    def of(self, side: str) -> Times:
        """One side's."""
        return next(times for times in self.sides if times.side == side)

    def to_json(self) -> dict[str, Any]:
        """Everything but single messages."""
        sides = {times.side: times.to_json() for times in self.sides}
        if self.later_ms is not None:
            for times in self.sides:
                sides[times.side]["late_share"] = times.later_than(self.later_ms)
        said = {"item": self.item, "what": self.what, "later_ms": self.later_ms}
        return said | {"path": asdict(self.path), "sides": sides}


def _times(made: Ends, told: Told, wanted: Sequence[tuple[int, int]], **more: Any) -> Times:
    """What was told of the messages in wanted, and what the link has counted since it was reset."""
    stats = made.link.stats()
    ms = sorted(told.message_s.get(key, float("inf")) * 1e3 for key in wanted)
    return Times(
        made.side,
        tuple(ms),
        wire_bytes=(stats.ab.rx_bytes, stats.ba.rx_bytes),
        connect_ms=tuple(sorted(s * 1e3 for s in told.connect_s.values())),
        failed=tuple(told.failed.values()),
        own_drops=stats.own_drops,
        **more,
    )


def _copies(made: Ends, before: dict[str, int], counter: str = "core_copies") -> int | None:
    """What the stacks have sent again before they knew that it was lost; None: nobody counts it."""
    now = made.counters()
    return now[counter] - before.get(counter, 0) if counter in now else None


def _counted(pace: Pace, warm: int) -> list[tuple[int, int]]:
    return [(c, n) for c in range(pace.connections) for n in range(warm, pace.messages)]


@dataclass(frozen=True)
class Echoed:
    """What goes to an echo and back: the item, whether by UDP, who runs it, what counts copies,
    the pace, and how many messages of a connection do not count.
    """

    item: str
    datagrams: bool
    sides: tuple[str, ...]
    copies: str
    pace: Pace
    warm: int


def measure_echoed(way: Echoed, sides: Sequence[Ends], path: LatencyPath, seed: int) -> Found:
    """Echo servers listen already; all sides at once."""
    before = {}
    for made in sides:
        made.take(path, seed)
        before[made.side] = made.counters()
    ask = "ask-datagrams" if way.datagrams else "ask"
    senders = [
        Sender(ask, made.client, (made.server.ip4, ECHO_PORT), way.pace, made.cgroups["client"])
        for made in sides
    ]
    told = [sender.result() for sender in senders]
    wanted = _counted(way.pace, way.warm)
    times = []
    for made, one in zip(sides, told, strict=True):
        copies = _copies(made, before[made.side], way.copies)
        more = {"payload_bytes": way.pace.payload_bytes, "copies": copies}
        times.append(_times(made, one, wanted, **more))
    what = f"{way.pace.size_bytes} bytes each {way.pace.interval_s * 1e3:g} ms"
    return Found(way.item, what, path, tuple(times))


def measure_stream(
    sides: Sequence[Ends], path: LatencyPath, mbit: float, plan: LatencyPlan, directory: Path
) -> Found:
    """Frames from the client to a sink on the server; all sides at once."""
    frame = round(mbit * 1e6 / 8 / FRAMES_PER_S)
    pace = Pace(plan.streams, round(plan.stream_s * FRAMES_PER_S), frame, 1 / FRAMES_PER_S)
    port = ECHO_PORT + 1 + round(mbit)
    with ExitStack() as stack:
        sinks: list[Server] = []
        before = {}
        for made in sides:
            log = directory / f"sink-{made.side}-{mbit:g}.log"
            log.unlink(missing_ok=True)
            sinks.append(sink_server(made.server, port, frame, log, made.cgroups["server"]))
            stack.callback(sinks[-1].stop)
            made.take(path, 1)
            before[made.side] = made.counters()
        senders = [
            Sender("send", made.client, (made.server.ip4, port), pace, made.cgroups["client"])
            for made in sides
        ]
        sent = [sender.result() for sender in senders]
        found = [told_by(sink.log) for sink in sinks]
    warm = round(plan.stream_warm_s * FRAMES_PER_S)
    times = []
    for made, one, arrived in zip(sides, sent, found, strict=True):
        one.message_s = arrived.message_s
        copies = _copies(made, before[made.side])
        more = {"payload_bytes": pace.payload_bytes, "copies": copies}
        times.append(_times(made, one, _counted(pace, warm), **more))
    later = path.rtt_ms / 2 + STREAM_SLACK_MS
    return Found("streams", f"{mbit:g} Mbit/s", path, tuple(times), later)


def _client(protocol: str, urls: list[str]) -> list[str]:
    """A program that gets them all and says "200" of each."""
    if protocol.startswith("HTTP/2"):
        # curl 7.88, of Debian 12, fails where several requests wait for one HTTP/2 connection.
        return ["nghttp", "-n", "-s", "-t", str(PAGE_TIMEOUT_S), *urls]
    argv = ["curl", "-sS", "--fail", "--parallel", "--parallel-max", "6", "--http1.1"]
    argv += ["--max-time", str(PAGE_TIMEOUT_S), "-w", " %{http_code} \n"]
    return [*argv, *(word for url in urls for word in ("-o", "/dev/null", url))]


def _load(made: Ends, protocol: str, urls: list[str]) -> float:
    """Seconds until a client has the whole page; infinite: it has not."""
    argv = made.cgroups["client"].argv(_client(protocol, urls))
    began = time.monotonic()
    done = made.client.run(argv, check=False, timeout=PAGE_TIMEOUT_S + 30)
    took = time.monotonic() - began
    if "No such file" in done.stderr or "not found" in done.stderr:
        raise DmmError("get a page", why=done.stderr.strip(), hint="run tools/bootstrap")
    whole = not done.returncode and done.stdout.count(" 200 ") == len(urls)
    return took if whole else float("inf")


def measure_page(
    sides: Sequence[Ends], protocol: str, port: int, loads: int, done: Callable[[str], None]
) -> Found:
    """The sides in turn, load n with the same seed on each."""
    seconds: dict[str, list[float]] = {made.side: [] for made in sides}
    wire: dict[str, list[int]] = {made.side: [0, 0] for made in sides}
    drops = dict.fromkeys(seconds, 0)
    before = {made.side: made.counters() for made in sides}
    for number in range(loads):
        for made in sides if number % 2 else reversed(sides):
            urls = [f"http://{made.server.ip4}:{port}/{n}" for n in range(len(PAGE_BYTES))]
            made.take(PAGE_PATH, number + 1)
            seconds[made.side].append(_load(made, protocol, urls))
            stats = made.link.stats()
            wire[made.side][0] += stats.ab.rx_bytes
            wire[made.side][1] += stats.ba.rx_bytes
            drops[made.side] += stats.own_drops
        done(f"{protocol}: {number + 1} of {loads}")
    times = [
        Times(
            made.side,
            tuple(sorted(s * 1e3 for s in seconds[made.side])),
            payload_bytes=loads * sum(PAGE_BYTES),
            wire_bytes=(wire[made.side][0], wire[made.side][1]),
            copies=_copies(made, before[made.side]),
            own_drops=drops[made.side],
        )
        for made in sides
    ]
    return Found("page", protocol, PAGE_PATH, tuple(times))


def measure_many(made: Ends, pace: Pace, directory: Path) -> Times:
    """All at once; each ends when its last answer is here. ms are lives of connections."""
    server = echo_server(
        made.server, ECHO_PORT, directory / f"many-{made.side}.log", made.cgroups["server"]
    )
    try:
        made.take(MANY_PATH, 1)
        before = made.counters()
        to = (made.server.ip4, ECHO_PORT)
        told = Sender("ask", made.client, to, pace, made.cgroups["client"]).result()
        told.message_s = {(c, 0): life for c, life in told.life_s.items()}
        wanted = [(c, 0) for c in range(pace.connections)]
        copies = _copies(made, before)
        return _times(made, told, wanted, payload_bytes=pace.payload_bytes, copies=copies)
    finally:
        server.stop()


def _all_echoed(
    way: Echoed, over: Sequence[LatencyPath], directory: Path, done: Callable[[str], None]
) -> Iterator[Found]:
    keys = {"udp": True} if way.datagrams else {}
    with ExitStack() as stack:
        sides = [stack.enter_context(ends(side, "client", directory, **keys)) for side in way.sides]
        for made in sides:
            log = directory / f"echo-{way.item}-{made.side}.log"
            cgroup = made.cgroups["server"]
            echo_server(made.server, ECHO_PORT, log, cgroup, datagrams=way.datagrams)
        for number, path in enumerate(over):
            yield measure_echoed(way, sides, path, number + 1)
            done(f"{way.item}: {path}")


def _all_messages(
    plan: LatencyPlan, directory: Path, done: Callable[[str], None]
) -> Iterator[Found]:
    way = Echoed("messages", False, SIDES, "core_copies", plan.messages, plan.warm)
    return _all_echoed(way, plan.paths, directory, done)


def _all_datagrams(
    plan: LatencyPlan, directory: Path, done: Callable[[str], None]
) -> Iterator[Found]:
    counter = "core_datagram_copies"
    way = Echoed("datagrams", True, DATAGRAM_SIDES, counter, plan.datagrams, plan.datagram_warm)
    return _all_echoed(way, plan.paths, directory, done)


def _all_streams(
    plan: LatencyPlan, directory: Path, done: Callable[[str], None]
) -> Iterator[Found]:
    with ExitStack() as stack:
        sides = [stack.enter_context(ends(side, "client", directory)) for side in SIDES]
        for path in plan.stream_paths:
            for mbit in STREAMS_MBIT:
                yield measure_stream(sides, path, mbit, plan, directory)
                done(f"streams: {mbit} Mbit/s, {path}")


def _all_pages(plan: LatencyPlan, directory: Path, done: Callable[[str], None]) -> Iterator[Found]:
    files = directory / "page"
    files.mkdir(exist_ok=True)
    for number, size in enumerate(PAGE_BYTES):
        random_file(files / str(number), size, seed=number + 1)
    with ExitStack() as stack:
        sides = [stack.enter_context(ends(side, "server", directory)) for side in SIDES]
        for port, protocol in enumerate(PROTOCOLS, 80):
            for made in sides:
                logs = directory / f"nginx-{made.side}-{port}"
                cgroup, http2 = made.cgroups["server"], port != 80
                nginx(made.server, files, logs, port=port, cgroup=cgroup, http2=http2)
            yield measure_page(sides, protocol, port, plan.loads, done)


def _all_many(plan: LatencyPlan, directory: Path, done: Callable[[str], None]) -> Iterator[Found]:
    times = []
    for side in SIDES:
        with ends(side, "client", directory) as made:
            times.append(measure_many(made, plan.many, directory))
        done(f"many: {side}")
    what = f"{plan.many.connections} connections, {plan.many.messages} messages each"
    yield Found("many", what, MANY_PATH, tuple(times))


_RUNS = {
    "messages": _all_messages,
    "datagrams": _all_datagrams,
    "streams": _all_streams,
    "page": _all_pages,
    "many": _all_many,
}


def run_latency_wan(
    plan: LatencyPlan, directory: Path, done: Callable[[str], None]
) -> Iterator[Found]:
    """Every cell as it is found. done: told what has been done."""
    for item in plan.items:
        if item not in _RUNS:
            raise DmmError(f"measure {item!r}", why=f"there are {', '.join(ITEMS)}")
        yield from _RUNS[item](plan, directory, done)
