# SPDX-License-Identifier: Apache-2.0
"""What the words of a scenario do that are no packets: docs/conformance.md has them."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

from scenario_bench import Bench
from scenario_compare import OPERATORS, PORT, MismatchError
from scenario_core import ACK, OUTER, SYN
from scenario_grammar import COMPARE, LEGS, Packet, duration_ns
from scenario_send import Sender

from dmm_ebpf.tcpstates import TCP_STATES

STATES = ["-", *(state.name for state in TCP_STATES)]


class Words:
    """The words, on one bench."""

    def __init__(self, bench: Bench, sender: Sender) -> None:
        self.bench, self.sender = bench, sender
        self.actions: deque[tuple[str, int, int]] = deque()

    def do(self, verb: str, words: list[str]) -> None:
        """One line. Raises MismatchError, and what a word that is none makes."""
        getattr(self, f"_do_{verb}")(words)

    def _do_open(self, words: list[str]) -> None:
        """Both legs of a connection: see docs/conformance.md."""
        kind, *rest = words
        options = dict(word.split("=", 1) for word in rest)
        without = set(options.get("no", "").split(","))
        flow = self.bench.flow(OUTER, int(options.get("port", PORT)))
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
        app = self.bench.app(attrs["port"])
        syn_win = str(
            min(flow.win << (0 if "wscale" in without else int(options.get("wscale", "7"))), 65535)
        )
        if kind == "active":
            app.connect()
            self.bench.take(SYN)
            self.bench.advance(self.bench.core.now + rtt)
            self.sender.packet(
                Packet(OUTER, True, "S.", 0, 0, 0, None, 1, syn_win, syn_options, attrs)
            )
            self.bench.take(ACK)
        elif kind == "passive":
            self.sender.packet(
                Packet(OUTER, True, "S", 0, 0, 0, None, None, syn_win, syn_options, attrs)
            )
            self.bench.take(SYN | ACK)
            self.bench.advance(self.bench.core.now + rtt)
            self.sender.packet(Packet(OUTER, True, ".", 1, 1, 0, None, 1, None, None, attrs))
        else:
            raise MismatchError(f"open is active or passive, not {kind}")
        if app.state != "open":
            raise MismatchError(f"the application's socket is {app.state}")
        self.bench.nothing_left()

    def _fetch_actions(self) -> None:
        while action := self.bench.core.action():
            self.actions.append(action)

    def _do_unreachable(self, words: list[str]) -> None:
        """Refuses the oldest OWN."""
        conn = self._find_action("own")[1]
        self.bench.core.lib.dmm_core_unreachable(
            self.bench.core.ptr, conn, getattr(errno, words[0]), self.bench.core.now
        )
        self.bench.settle()

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
        info = self.bench.core.info(port)
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
        at = [word for word in words if word.startswith("port=")]
        info = self.bench.core.info(int(at[0].partition("=")[2]) if at else PORT)
        if info is None:
            raise MismatchError("there is no such connection")
        self._compare_all([word for word in words if word not in at], info.__getitem__)

    def _do_count(self, words: list[str]) -> None:
        self._compare_all(words, self.bench.core.counter)

    def _do_quiet(self, _words: list[str]) -> None:
        self.bench.nothing_left()

    def _do_wait(self, _words: list[str]) -> None:
        """Time passes; what comes meanwhile must be expected by the lines that follow."""

    def _do_skip(self, words: list[str]) -> None:
        self.bench.queue[LEGS[words[0]]].clear()

    def _do_isn(self, words: list[str]) -> None:
        """`isn outer +N` moves, `isn outer N` sets: the far end's next initial sequence number."""
        flow = self.bench.flow(LEGS[words[0]], PORT)
        value = int(words[1], 0)
        flow.isn = (flow.isn + value if words[1][0] in "+-" else value) % 2**32
        flow.core_isn = None

    def _do_abort(self, _words: list[str]) -> None:
        self.bench.core.lib.dmm_core_abort_all(self.bench.core.ptr, self.bench.core.now)
        self.bench.settle()

    def _do_app(self, words: list[str]) -> None:
        """The application on the inner leg acts, or is asked what it saw."""
        app, verb = self.bench.app(), words[0]
        facts = {"eof": app.eof, "dead": app.dead, "not-eof": not app.eof, "not-dead": not app.dead}
        match verb:
            case "connect" | "close" | "reset" | "hold" | "repeat":
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
        self.bench.settle()
