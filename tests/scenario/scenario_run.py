# SPDX-License-Identifier: Apache-2.0
"""Runs a parsed scenario against a core in virtual time. Strict: a packet that no line expects
fails the scenario.
"""

from __future__ import annotations

from typing import Any

import scenario_setup
from scenario_bench import Bench
from scenario_compare import MismatchError, differences
from scenario_grammar import NS, IcmpLine, Packet, Scenario, ScenarioError, Step
from scenario_packets import BadPacketError
from scenario_send import Sender
from scenario_words import Words

# Words before which every packet must have been expected, and what an app does that is one
STRICT = {"open", "quiet", "unreachable", "abort"}
ACTS = {"connect", "write", "close", "reset", "window"}


class Run:
    """One scenario on one core."""

    def __init__(self, scenario: Scenario, built: tuple[Any, Any]) -> None:
        self.scenario = scenario
        setup = scenario_setup.read(scenario)
        self.bench = Bench(built, setup, scenario_setup.START_NS)
        self.sender = Sender(self.bench)
        self.words = Words(self.bench, self.sender)
        self.base = self.last_at = scenario_setup.START_NS

    def _expect(self, step: Step, line: Packet | IcmpLine, at: int) -> None:
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
        slack = self.bench.setup.slack if step.slack_ns is None else step.slack_ns
        queue = self.bench.queue[line.leg]
        if not queue:
            self.bench.advance(at + slack, until=line.leg)
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

    def _step(self, step: Step) -> None:
        """One line."""
        at = self.bench.start + step.at_ns if step.absolute else self.base + step.at_ns
        if at < self.base:
            raise MismatchError("its time has passed")
        self.last_at = at
        if step.packet is not None and not step.packet.inbound:
            self._expect(step, step.packet, at)
            self.base = max(self.base, self.last_at)
            return
        self.bench.advance(at)
        acts = step.words[0] in ACTS if step.verb == "app" else step.verb in STRICT
        if step.packet is not None or acts:
            self.bench.nothing_left()
        if isinstance(step.packet, Packet):
            self.sender.packet(step.packet)
        elif isinstance(step.packet, IcmpLine):
            self.sender.icmp(step.packet)
        else:
            self.words.do(step.verb, step.words)
        self.base = max(self.base, self.bench.core.now)

    def run(self) -> None:
        """The scenario to its end; ScenarioError says which line failed, and how."""
        last = self.scenario.steps[-1]
        for step in self.scenario.steps:
            try:
                self._step(step)
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
            self.bench.settle()
            self.bench.nothing_left()
        except (MismatchError, BadPacketError) as error:
            raise self._failure(last, f"after the last line: {error}") from error

    def _failure(self, step: Step, why: str) -> ScenarioError:
        trace = "\n".join(f"    {line}" for line in list(self.bench.trace)[-16:])
        return ScenarioError(
            self.scenario.path,
            step.line,
            f"{why}\n  expected: {step.text}\n  what happened last:\n{trace}",
        )
