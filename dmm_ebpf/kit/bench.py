# SPDX-License-Identifier: Apache-2.0
"""The test bench of congestion controls: a bottleneck in virtual time, shared by one flow
of each control.

The sender is idealised (kit/sim/ccsim.h); what a control sees of it, and is asked, is as in a stack
process. The same path, controls and seed give the same figures, but for a plug-in that is a
function of more than what it is told.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.kit import guarding, names
from dmm_ebpf.kit._sim import ffi, lib
from dmm_ebpf.kit.bridge import Faults, Guarded

MSS_BYTES = 1448  # CCSIM_MSS
WIRE_BYTES = 1538  # CCSIM_WIRE: the same segment with all headers, on Ethernet
MOST_FLOWS = int(lib.CCSIM_FLOWS)
_POINTS = 1000  # of each flow
_WARM = 0.15  # of the duration
_MOST_QUEUE_BYTES = 1 << 40
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Course:
    """The path. rate_Bps: of bits on the wire, Ethernet's preamble and gap included; loss: of
    single packets behind the bottleneck, a share; queue_bdp: how much the bottleneck's queue holds,
    in rate_Bps * rtt_s.
    """

    rate_Bps: float = 12.5e6  # noqa: N815
    rtt_s: float = 0.1
    loss: float = 0.0
    queue_bdp: float = 1.0
    duration_s: float = 20.0
    seed: int = 1

    def check(self) -> None:
        """Raises UsageError for what cannot be run."""
        for name, value, least, most in (
            ("a rate (bytes a second)", self.rate_Bps, 1e3, 1.25e10),
            ("a round trip (ms)", self.rtt_s * 1e3, 0.01, 10_000),
            ("a loss (percent)", self.loss * 100, 0, 90),
            ("a queue (BDP)", self.queue_bdp, 0, 1000),
            ("a duration (s)", self.duration_s, 0.1, 3600),
            ("a seed", self.seed, 0, 2**32),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise UsageError(
                    "simulate",
                    why=f"{value:g} is not {name}",
                    hint=f"expected {least:g} to {most:g}",
                )

    @property
    def queue_bytes(self) -> int:
        """What the bottleneck's queue holds: two packets at least."""
        return max(int(self.queue_bdp * self.rate_Bps * self.rtt_s), 2 * WIRE_BYTES)

    @property
    def limit_Bps(self) -> float:  # noqa: N802
        """The most payload that the path can deliver, bytes a second."""
        return self.rate_Bps * (1 - self.loss) * MSS_BYTES / WIRE_BYTES


@dataclass(frozen=True)
class Flow:
    """What one flow got, from when the first 15 % of the time were over.

    queue_ms: mean wait at the bottleneck; retransmits: packets sent again, needless_retransmits of
    them although they had arrived; queue_loss and random_loss: shares of what was sent.
    """

    congestion: str
    goodput_Bps: float  # noqa: N815
    share: float  # of limit_Bps
    queue_ms: float
    sent_packets: int
    retransmits: int
    needless_retransmits: int
    queue_loss: float
    random_loss: float
    rtos: int
    faults: Faults


@dataclass(frozen=True)
class Point:
    """One flow at a moment, for plots. rate_Bps: delivered since the point before."""

    at_s: float
    cwnd_bytes: int
    inflight_bytes: int
    pacing_Bps: int  # noqa: N815
    rate_Bps: float  # noqa: N815
    queue_ms: float


@dataclass(frozen=True)
class Run:
    """What came of it: flows in the order of the controls, and the points of each."""

    course: Course
    flows: Sequence[Flow]
    points: Sequence[Sequence[Point]]


def run(controls: Sequence[str], course: Course) -> Run:
    """One run; controls are named as in a policy, and files may be relative to the current
    directory. Raises DmmError.
    """
    course.check()
    if not 1 <= len(controls) <= MOST_FLOWS:
        raise UsageError("simulate", why=f"{len(controls)} flows are not 1 to {MOST_FLOWS}")
    with ExitStack() as stack:
        loaded = [stack.enter_context(_control(text)) for text in controls]
        return _run(controls, loaded, course)


def run_built(plugin: Guarded, course: Course) -> Run:
    """The same with one plug-in that is loaded, from this module's library, and started."""
    return _run([plugin.plugin.text], [plugin], course)


def named(text: str, seam: names.Seam = names.CONGESTION) -> names.Plugin:
    """The plug-in of that name, relative to the current directory where it names no absolute
    file. Raises DmmError.
    """
    kind, _, rest = text.partition(":")
    where, sep, attribute = rest.rpartition(":") if kind == names.PYTHON else (rest, "", "")
    if kind in {names.PYTHON, names.NATIVE} and where.endswith((".py", ".so")):
        return names.locate(f"{kind}:{Path.cwd() / where}{sep}{attribute}", seam=seam)
    return names.locate(text, seam=seam)


@contextmanager
def _control(text: str) -> Iterator[Guarded | None]:
    """A plug-in, ready; None: the control is built in."""
    if not names.is_plugin(text):
        yield None
        return
    plugin = guarding.guarded(named(text), ffi, lib, trusted_only=False)
    over = threading.Event()
    looking = threading.Thread(target=_look, args=(plugin, over), daemon=True)
    plugin.start()
    looking.start()
    try:
        yield plugin
    finally:
        plugin.close()
        over.set()
        looking.join()


def _look(plugin: Guarded, over: threading.Event) -> None:
    while not over.wait(plugin.LOOK_S):
        plugin.look()


def _run(controls: Sequence[str], loaded: Sequence[Guarded | None], course: Course) -> Run:
    step_s = course.duration_s / _POINTS
    path = ffi.new(
        "struct ccsim_path *",
        {
            "rate_Bps": course.rate_Bps,
            "loss": course.loss,
            "rtt_ns": int(course.rtt_s * 1e9),
            "buffer_bytes": min(course.queue_bytes, _MOST_QUEUE_BYTES),
            "end_ns": int(course.duration_s * 1e9),
            "warm_ns": int(course.duration_s * _WARM * 1e9),
            "ack_every": 2,
            "trace_ns": int(step_s * 1e9),
            "seed": course.seed,
            "flows_n": len(controls),
        },
    )
    flows = ffi.new("struct ccsim_flow[]", len(controls))
    for flow, text, plugin in zip(flows, controls, loaded, strict=True):
        flow.ops = lib.cc_find(text.encode()) if plugin is None else plugin.ops
    figures = ffi.new("struct ccsim_figures[]", len(controls))
    room = (_POINTS + 1) * len(controls)
    points = ffi.new("struct ccsim_point[]", room)
    with _one_at_a_time:
        count = lib.ccsim_run(path, flows, figures, points, room)
    told = [_flow(*one, course) for one in zip(controls, figures, loaded, strict=True)]
    return Run(
        course,
        told,
        [_points(points, range(i, count, len(controls)), step_s) for i in range(len(controls))],
    )


def _flow(text: str, raw: Any, plugin: Guarded | None, course: Course) -> Flow:
    return Flow(
        congestion=text,
        goodput_Bps=float(raw.goodput_Bps),
        share=float(raw.goodput_Bps) / course.limit_Bps,
        queue_ms=float(raw.qdelay_ms),
        sent_packets=int(raw.sent_packets),
        retransmits=int(raw.lost_packets),
        needless_retransmits=int(raw.spurious_packets),
        queue_loss=float(raw.queue_loss),
        random_loss=float(raw.random_loss),
        rtos=int(raw.rtos),
        faults=Faults(0, 0, "") if plugin is None else plugin.faults(),
    )


def _points(raw: Any, numbers: Sequence[int], step_s: float) -> list[Point]:
    points = []
    before = 0
    for i in numbers:
        p = raw[i]
        rate = (int(p.delivered_bytes) - before) / step_s
        before = int(p.delivered_bytes)
        points.append(
            Point(
                p.at_ns / 1e9,
                int(p.cwnd_bytes),
                int(p.inflight_bytes),
                int(p.pacing_Bps),
                rate,
                p.queue_ns / 1e6,
            )
        )
    return points


def plot(done: Run, file: Path) -> None:
    """Draws window, rate and queue over time; the file's name says the format (.svg,
    .png). Raises DmmError.
    """
    what = f"plot to {file}"
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DmmError(
            what, why="matplotlib is not installed", hint="run pip install 'dmm-ebpf[lab]'"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = pyplot.figure().canvas.get_supported_filetypes()
    pyplot.close("all")
    if file.suffix.lstrip(".") not in kinds:
        raise UsageError(
            what, why=f"{file.suffix or 'no suffix'} names no format", hint="expected .svg or .png"
        )
    figure, axes = pyplot.subplots(3, sharex=True, figsize=(9, 8), layout="constrained")
    for flow, points in zip(done.flows, done.points, strict=True):
        at = [p.at_s for p in points]
        axes[0].plot(at, [p.cwnd_bytes / 1e3 for p in points], label=flow.congestion)
        (line,) = axes[1].plot(at, _smooth([p.rate_Bps * 8e-6 for p in points], done.course))
        if any(p.pacing_Bps for p in points):
            pacing = [p.pacing_Bps * 8e-6 for p in points]
            axes[1].plot(at, pacing, linestyle=":", linewidth=0.8, color=line.get_color())
    axes[2].plot(
        [p.at_s for p in done.points[0]], [p.queue_ms for p in done.points[0]], color="black"
    )
    for axis, label in zip(
        axes, ("window, kB", "delivered, Mbit/s (dotted: pacing)", "queue, ms"), strict=True
    ):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].set_ylim(top=done.course.limit_Bps * 8e-6 * 1.5)
    axes[0].legend()
    axes[2].set_xlabel("s")
    try:
        figure.savefig(file)
    except OSError as error:
        raise DmmError(what, why=error.strerror or str(error)) from error
    finally:
        pyplot.close(figure)


def _smooth(values: Sequence[float], course: Course) -> list[float]:
    """Each as the mean of the last two round trips: within one, a flow comes in bursts."""
    many = max(round(2 * course.rtt_s * _POINTS / course.duration_s), 10)
    return [
        sum(part) / len(part)
        for i in range(len(values))
        if (part := values[max(0, i - many + 1) : i + 1])
    ]
