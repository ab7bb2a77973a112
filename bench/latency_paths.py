# SPDX-License-Identifier: Apache-2.0
"""The paths and the hosts of `tools/bench latency-wan`: kernel BBR at both ends, ours at one end,
ours at both (of datagrams: the kernel, ours at both); a laboratory each, all up at once, the same
path and the same seed in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.policies import stack_policy
from lab import Cgroup, Host, Lab, WanLink
from lab.routed import Routed

SIDES = ("bbr", "one", "both")
# Copies of datagrams want a stack at both ends
DATAGRAM_SIDES = ("kernel", "both")
NAMES = {
    "bbr": "kernel bbr",
    "kernel": "kernel",
    "one": "ours at one end",
    "both": "ours at both ends",
}
KINDS = ("random", "bursts")
LOSSES_PCT = (0.0, 1.0, 5.0, 12.0)
RTTS_MS = (20.0, 100.0, 200.0)
# Far more than is ever sent: what is late is not late for want of it
RATE_MBIT = 1000
# Of time, so that flows side by side meet what each would meet alone
BURST = "5ms"
# Room for 200 ms at a stream's rate, with what waits behind holes
TCP_BUFFERS_BYTES = 16 << 20
# What a policy says of a stack for latency's sake
OURS: dict[str, Any] = {"congestion": "wan", "latency": "low"}
BOTH: dict[str, Any] = OURS | {"negotiate": "allow"}  # where there is somebody to agree with


@dataclass(frozen=True)
class LatencyPath:
    """loss_pct: each way; kind: of KINDS."""

    rtt_ms: float
    loss_pct: float
    kind: str = "random"

    def __str__(self) -> str:
        loss = f"{self.loss_pct:g} %"
        return f"{self.rtt_ms:g} ms, {loss}{' in bursts' if self.kind == 'bursts' else ''}"

    @property
    def changes(self) -> dict[str, str]:
        """For WanLink.set."""
        loss = f"{self.loss_pct:g}%" + (f" burst {BURST}" if self.kind == "bursts" else "")
        return {"delay": f"{self.rtt_ms / 2:g}ms", "loss": loss}


def paths(
    rtts_ms: tuple[float, ...], losses_pct: tuple[float, ...], kinds: tuple[str, ...] = KINDS
) -> list[LatencyPath]:
    """Every combination; nothing lost is of no kind."""
    return [
        LatencyPath(rtt, loss, kind)
        for rtt in rtts_ms
        for loss in losses_pct
        for kind in (kinds if loss else KINDS[:1])
    ]


@dataclass
class Ends:
    """One side: two hosts, what joins them, and the instances on them."""

    side: str
    client: Host
    server: Host
    link: WanLink
    cgroups: dict[str, Cgroup]
    routed: dict[str, Routed] = field(default_factory=dict)

    def take(self, path: LatencyPath, seed: int) -> None:
        """The path as it is from now on; counters begin."""
        self.link.set(seed=seed, **path.changes)
        self.link.reset()

    def counters(self) -> dict[str, int]:
        """Of all stack processes of this side together."""
        total: dict[str, int] = {}
        for routed in self.routed.values():
            for name, value in routed.ask_stack("wan").items():
                if isinstance(value, int):
                    total[name] = total.get(name, 0) + value
        return total


@contextmanager
def ends(side: str, one: str, directory: Path, **keys: Any) -> Iterator[Ends]:
    """A laboratory for a side. one: "client" or "server", the end that is ours when one is; keys:
    what the policy says of our stacks besides.
    """
    with Lab("latencywan") as lab, ExitStack() as stack:
        hosts = {n: lab.host(n, tcp_buffers=TCP_BUFFERS_BYTES) for n in ("client", "server")}
        for host in hosts.values():
            host.sysctl("net.ipv4.tcp_congestion_control", "bbr")
        link = lab.wan(
            hosts["client"], hosts["server"], rate=f"{RATE_MBIT}mbit", neighbours="static"
        )
        cgroups = {n: stack.enter_context(Cgroup()) for n in hosts}
        made = Ends(side, hosts["client"], hosts["server"], link, cgroups)
        ours = {"one": (one,), "both": ("client", "server")}.get(side, ())
        for name in ours:
            policy = stack_policy(**(BOTH if side == "both" else OURS), **keys)
            made.routed[name] = stack.enter_context(
                Routed(hosts[name], cgroups[name], policy, directory)
            )
        yield made


def quantile(ordered: list[float], share: float) -> float:
    """The least value that so large a share does not exceed; infinite: that did not come."""
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


@dataclass(frozen=True)
class Times:
    """What one side did on one path: times in ms in order, those that never came are infinite.
    wire_bytes: frames that left client and server; copies: sent by our stacks.
    """

    side: str
    ms: tuple[float, ...]
    payload_bytes: int = 0
    wire_bytes: tuple[int, int] = (0, 0)
    connect_ms: tuple[float, ...] = ()
    failed: tuple[str, ...] = ()
    copies: int | None = None
    own_drops: int = 0

    @property
    def missing(self) -> int:
        """Messages that never came."""
        return sum(ms == float("inf") for ms in self.ms)

    @property
    def came_share(self) -> float:
        """The share of messages that came."""
        return 1 - self.missing / len(self.ms)

    def at(self, share: float) -> float:
        """A quantile, in ms."""
        return quantile(list(self.ms), share)

    def later_than(self, ms: float) -> float:
        """The share of those that were later."""
        return sum(one > ms for one in self.ms) / len(self.ms)

    @property
    def cost(self) -> tuple[float, float]:
        """Bytes that left client and server ÷ payload one way."""
        payload = self.payload_bytes or 1
        return self.wire_bytes[0] / payload, self.wire_bytes[1] / payload

    def to_json(self) -> dict[str, Any]:
        """Quantiles instead of every message."""
        said = asdict(self) | {"count": len(self.ms), "missing": self.missing, "cost": self.cost}
        said["came_share"] = self.came_share
        shares = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
        said["ms"] = {f"p{share * 100:g}": self.at(share) for share in shares}
        return said
