# SPDX-License-Identifier: Apache-2.0
"""Links between two hosts: a plain wire, and the emulated wide-area link with its control
and its counters.

Direction "ab" is from the host named first to the host named second. The emulator
itself is lab/wanem.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.errors import DmmError, UsageError
from lab.impairments import parse_jitter, parse_length, parse_loss
from lab.netns import tx_dropped
from lab.units import Queue, parse_probability, parse_queue, parse_rate, parse_time_ns

if TYPE_CHECKING:
    from lab.hosts import Nic

DIRECTIONS = ("ab", "ba")
CONTROL_TIMEOUT_S = 5.0
ETHERNET_OVERHEAD_BYTES = 24
ONE_BDP = Queue(bdp=1.0)


@dataclass(frozen=True)
class LinkParams:
    """One direction of a wide-area link; what the words mean is in docs/wanlab.md."""

    rate_bps: int = 0
    delay_ns: int = 0
    queue: Queue = ONE_BDP
    loss: float = 0.0
    burst_r: float = 0.0  # before p: each word is checked as it comes
    burst_p: float = 0.0
    burst_loss_bad: float = 0.0
    burst_loss_good: float = 0.0
    burst_step_ns: int = 0
    loss_above: int = 0
    jitter_ns: int = 0
    jitter_exponential: int = 0
    jitter_reorder: int = 0
    reorder: float = 0.0
    reorder_ns: int = 0
    duplicate: float = 0.0
    corrupt: float = 0.0
    overhead_bytes: int = ETHERNET_OVERHEAD_BYTES
    seed: int = 1

    def with_changes(self, changes: Mapping[str, Any]) -> LinkParams:
        """These parameters with some given as people write them: rate="20mbit",
        delay="5ms", loss="1%", ...
        """
        parsed: dict[str, Any] = {}
        for key, value in changes.items():
            if key not in _SPELLINGS:
                known = ", ".join(_SPELLINGS)
                raise UsageError(
                    f"set {key!r} on a link", why="there is no such parameter", hint=f"use {known}"
                )
            parsed |= _SPELLINGS[key](value)
        return replace(self, **parsed)

    def assignments(self, rtt_ns: int) -> list[str]:
        """The emulator's KEY=VALUE words."""
        values: dict[str, Any] = {k: v for k, v in asdict(self).items() if k != "queue"}
        values |= self.queue.limits(self.rate_bps, rtt_ns)
        return [f"{key}={value!r}" for key, value in values.items()]


def _one(field: str, parse: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """A spelling that says one field."""
    return lambda value: {field: parse(value)}


_SPELLINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rate": _one("rate_bps", parse_rate),
    "delay": _one("delay_ns", parse_time_ns),
    "queue": _one("queue", parse_queue),
    "loss": parse_loss,
    "loss_above": _one("loss_above", parse_length),
    "jitter": parse_jitter,
    "reorder": _one("reorder", parse_probability),
    "reorder_delay": _one("reorder_ns", parse_time_ns),
    "duplicate": _one("duplicate", parse_probability),
    "corrupt": _one("corrupt", parse_probability),
    "overhead": _one("overhead_bytes", int),
    "seed": _one("seed", int),
}


@dataclass(frozen=True)
class DirectionStats:
    """Counters of one direction since the link was made or reset.

    rx: frames that came in from the sending host; tx: frames delivered. Bytes are of the Ethernet
    frame, queue bytes include the overhead. own_drops are frames that the laboratory itself lost:
    while it is not 0, nothing measured over the link means anything.
    """

    rx_pkts: int
    rx_bytes: int
    tx_pkts: int
    tx_bytes: int
    control_pkts: int
    queue_drops: int
    losses: int
    loss_bursts: int
    reordered: int
    duplicated: int
    corrupted: int
    queue_pkts: int
    queue_bytes: int
    queue_max_pkts: int
    queue_max_bytes: int
    queue_mean_pkts: float
    queue_mean_bytes: float
    queue_wait_max_ns: int
    queue_wait_mean_ns: float
    in_flight_pkts: int
    late_max_ns: int
    late_mean_ns: float
    ring_drops: int
    bad_pkts: int
    pool_drops: int
    pool_used_max_pkts: int
    tx_drops: int
    tx_retries: int
    host_drops: int
    own_drops: int


@dataclass(frozen=True)
class LinkStats:
    """Both directions, and what the emulator's process has used of a core."""

    ab: DirectionStats
    ba: DirectionStats
    uptime_ns: int
    cpu_user_ns: int
    cpu_system_ns: int

    @property
    def own_drops(self) -> int:
        """Frames lost by the laboratory itself, both ways."""
        return self.ab.own_drops + self.ba.own_drops


class Wire:
    """A veth pair from host to host: no emulation, as fast as the kernel copies."""

    def __init__(self, a: Nic, b: Nic) -> None:
        self.a = a
        self.b = b


class WanLink:
    """An emulated wide-area link: two hosts' interfaces, and the emulator that joins them."""

    def __init__(
        self,
        a: Nic,
        b: Nic,
        control: Path,
        process: subprocess.Popen[Any],
        params: tuple[LinkParams, LinkParams],
    ) -> None:
        self.a = a
        self.b = b
        self.control = control
        self.process = process
        self._params = params
        self._drops_before = {
            direction: self._host_tx_dropped(direction) for direction in DIRECTIONS
        }

    def params(self, direction: str) -> LinkParams:
        """What is set now, for "ab" or "ba"."""
        return self._params[DIRECTIONS.index(direction)]

    def set(self, direction: str = "both", **changes: Any) -> None:
        """Changes parameters, spelt as for Lab.wan, while traffic flows.

        Frames that wait are kept and leave at the new rate; frames that are under way keep the
        delay they had. A queue given in bdp follows the new rate and delay. A seed starts the
        pattern from its first frame.
        """
        wanted = DIRECTIONS if direction == "both" else (direction,)
        if not set(wanted) <= set(DIRECTIONS):
            raise UsageError(f"set direction {direction!r}", why="a direction is ab, ba or both")
        params = tuple(
            old.with_changes(changes) if name in wanted else old
            for name, old in zip(DIRECTIONS, self._params, strict=True)
        )
        for name, words in zip(
            DIRECTIONS, wan_assignments(params, keep_seed="seed" not in changes), strict=True
        ):
            if name in wanted or ("delay" in changes):
                self.command(f"set {name} {' '.join(words)}")
        self._params = (params[0], params[1])

    def stats(self) -> LinkStats:
        """The counters now."""
        return link_stats(
            self.command("stats"),
            {d: self._host_tx_dropped(d) - self._drops_before[d] for d in DIRECTIONS},
        )

    def reset(self) -> None:
        """Counters to zero; parameters, seed and frames under way stay."""
        self._drops_before = {
            direction: self._host_tx_dropped(direction) for direction in DIRECTIONS
        }
        self.command("reset")

    def command(self, line: str) -> dict[str, Any]:
        """One line to the emulator, its answer back."""
        return control_command(self.control, line)

    def _host_tx_dropped(self, direction: str) -> int:
        nic = self.a if direction == "ab" else self.b
        return nic.host.call(tx_dropped, nic.name)


def wan_assignments(
    params: tuple[LinkParams, ...], keep_seed: bool = False
) -> tuple[list[str], list[str]]:
    """Both directions' KEY=VALUE words; a queue in bdp needs the delay of both."""
    rtt_ns = params[0].delay_ns + params[1].delay_ns
    ab, ba = (
        [w for w in p.assignments(rtt_ns) if not (keep_seed and w.startswith("seed="))]
        for p in params
    )
    return ab, ba


def link_stats(answer: dict[str, Any], host_drops: Mapping[str, int]) -> LinkStats:
    """LinkStats from the emulator's JSON and what the hosts' own interfaces lost on the way in."""
    directions = {}
    for name in DIRECTIONS:
        counters = answer[name] | {"host_drops": host_drops.get(name, 0)}
        counters["own_drops"] += counters["host_drops"]
        directions[name] = DirectionStats(
            **{f.name: counters[f.name] for f in fields(DirectionStats)}
        )
    rest = {f.name: answer[f.name] for f in fields(LinkStats) if f.name not in DIRECTIONS}
    return LinkStats(ab=directions["ab"], ba=directions["ba"], **rest)


def control_command(control: Path, line: str) -> dict[str, Any]:
    """One line to the emulator behind a control socket; DmmError when it refuses or is gone."""
    what = f"tell the link emulator {line.partition(' ')[0]!r}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(CONTROL_TIMEOUT_S)
            sock.connect(str(control))
            sock.sendall(line.encode() + b"\n")
            with sock.makefile("rb") as stream:
                raw = stream.readline()
    except OSError as error:
        raise DmmError(what, why=str(error), hint="is the link still up?") from error
    if not raw:
        raise DmmError(what, why="it hung up", hint="is the link still up?")
    answer: dict[str, Any] = json.loads(raw)
    if "error" in answer:
        raise UsageError(what, why=answer["error"])
    return answer
