# SPDX-License-Identifier: Apache-2.0
"""One cell on one site: set up what the case says, run the application, look, and undo it all.

What is seen is a plain dictionary in which nothing is left of this run alone: addresses have
names, ports are "port" or "app", amounts are multiples of the payload. So two runs of a cell are
compared by ==.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat.case import CHAINS, CONNECT, FORWARD, IP4, IP6, LISTEN, PUBLISHED, USER, Case
from compat.site import Agent, Site, Untried
from dmm_ebpf.errors import DmmError
from lab import Host, wait_for
from lab.waiting import patient

SEED = 7
PATIENCE_S = 5  # how long the application waits for a byte
TABLE = "inet t"


@dataclass
class Seen:
    """What one cell showed. carried: "user", "kernel", or "" when nothing was established
    or says so.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    carried: str = ""
    reason: str = ""
    untried: str = ""
    seconds: float = 0.0


def amount(size: float, whole: int) -> str:
    """So many bytes, in payloads: headers, acknowledgements and segments sent again
    make no difference.
    """
    share = size / whole
    if not size:
        return "none"
    for below, word in ((0.2, "few"), (0.85, "part"), (1.45, "once"), (2.7, "twice")):
        if share < below:
            return word
    return f"{share:.0f} times"


def net_dev(host: Host) -> dict[str, tuple[int, int]]:
    """Bytes received and sent by each device of a host."""
    text = host.call(lambda: Path("/proc/thread-self/net/dev").read_text())
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        found[name.strip()] = (int(words[0]), int(words[8]))
    return found


class Cell:
    """A case being tried in one family and direction, on one site."""

    def __init__(self, case: Case, site: Site, family: str, direction: str) -> None:
        self.case, self.site, self.family, self.direction = case, site, family, direction
        published = direction == PUBLISHED
        self.port, self.port2 = (site.next_port(published=published) for _ in range(2))
        self.stack = contextlib.ExitStack()
        self.scratch: dict[str, Any] = {}
        names = dict(site.addresses[family])
        is_outward = direction in (CONNECT, FORWARD)
        self.target_name = case.target or ("peer" if is_outward else "client")
        target = names[self.target_name]
        ip = "ip" if family == IP4 else "ip6"
        port = self.port
        serves = self.port2 if case.redirected else port
        ours = {FORWARD: names["box"], PUBLISHED: names["box"]}.get(direction)
        dport, sport = ("dport", "sport") if is_outward else ("sport", "dport")
        far = target if is_outward else names["peer"]
        own_to, own_from = (f"{ip} saddr {ours} ", f"{ip} daddr {ours} ") if ours else ("", "")
        self.words = names | {
            "ip": ip,
            "proto": "ipv4" if family == IP4 else "ipv6",
            "port": str(port),
            "port2": str(self.port2),
            "serves": str(serves),
            "dev": site.device,
            "target": target,
            "own": ours or names["client"],
            "to": f"{own_to}{ip} daddr {far} tcp {dport} {port}",
            "from": f"{own_from}{ip} saddr {far} tcp {sport} {port}",
            "-to": f"-p tcp -d {far} --{dport} {port}",
            "-from": f"-p tcp -s {far} --{sport} {port}",
            "cgroup": site.cgroup.relative,
            "prohibited": "icmp-admin-prohibited" if family == IP4 else "icmp6-adm-prohibited",
            "all": "0.0.0.0/0" if family == IP4 else "::/0",
            "len": "32" if family == IP4 else "128",
        }
        if family == IP6:
            names = {name: f"[{address}]" for name, address in names.items()}
        self.words |= {
            f"{name}@": address for name, address in names.items()
        }  # where a port follows
        self.before: dict[str, tuple[int, int]] = {}

    # What a case's own steps use.

    @property
    def host(self) -> Host:
        """The host with dmm-ebpf."""
        return self.site.client

    def fill(self, text: str) -> str:
        """text with the cell's words in their places."""
        for name, value in self.words.items():
            text = text.replace("{" + name + "}", value)
        return text

    def run(
        self,
        *argv: str,
        host: Host | None = None,
        text: str | None = None,
        undo: Sequence[str] = (),
    ) -> str:
        """A command on a host; Untried with what it said if it fails. undo: a command
        for the end.
        """
        host = host or self.host
        try:
            done = host.run([self.fill(word) for word in argv], check=False, input=text)
        except FileNotFoundError as error:
            raise Untried(f"there is no {argv[0]}") from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise Untried(f"{' '.join(argv[:3])}: {said.partition('. ')[0]}")
        if undo:
            self.stack.callback(host.run, [self.fill(word) for word in undo], check=False)
        return str(done.stdout)

    def ip(self, do: str, undo: str = "", host: Host | None = None) -> None:
        """An ip(8) line in the cell's family, and the one that undoes it."""
        family = "-4" if self.family == IP4 else "-6"
        last = ("ip", family, *self.fill(undo).split()) if undo else ()
        self.run("ip", family, *self.fill(do).split(), host=host, undo=last)

    def sysctl(self, name: str, value: str, host: Host | None = None) -> None:
        """A sysctl until the end of the cell."""
        host = host or self.host
        name = self.fill(name)
        path = Path("/proc/sys") / name.replace(".", "/")
        try:
            before = host.call(path.read_text).strip()
            host.sysctl(name, value)
        except (OSError, DmmError) as error:
            raise Untried(f"sysctl {name}: {error}") from error
        self.stack.callback(host.sysctl, name, before)

    def nft(self, text: str, host: Host | None = None) -> None:
        """nft's own text, until the end of the cell."""
        try:
            nft = self.site.nft(host or self.host)
        except FileNotFoundError as error:
            raise Untried("there is no nft") from error
        self.stack.callback(nft.run, "flush ruleset")
        try:
            nft.run(self.fill(text))
        except DmmError as error:
            raise Untried(f"nft -f -: {error.why}") from error

    # The run.

    def observe(self) -> Seen:
        """Everything, from set-up to the end; never raises for what a carrier does."""
        with self.stack:
            try:
                self.set_up()
            except Untried as error:
                return Seen(untried=str(error))
            return self._program() if self.case.program else self._connections()

    def set_up(self) -> None:
        """The case's rules, settings and steps."""
        case = self.case
        for name, value in case.sysctls:
            self.sysctl(name, value)
        for do, undo in case.ip:
            self.ip(do, undo)
        rules = list(case.nft)
        if self.direction == PUBLISHED:
            rules.append("nat-pre {ip} daddr {client} tcp dport {port} dnat {ip} to {box@}:{port}")
        if case.prepare is not None:
            case.prepare(self)
        if rules:
            self.nft(self._nft_text(rules))
        for rule in case.iptables:
            self._iptables(rule)

    def _nft_text(self, rules: list[str]) -> str:
        lines, chains = [f"add table {TABLE}"], set()
        for rule in rules:
            chain, _, words = rule.partition(" ")
            if chain == "table":
                lines.append(words)
                continue
            chain = self._chain(chain, ("out", "in", "fwd"))
            name = f"at-{chain}"  # nft has words of its own
            if chain not in chains:
                chains.add(chain)
                lines.append(f"add chain {TABLE} {name} {{ {CHAINS[chain]}; }}")
            lines.append(f"add rule {TABLE} {name} {words}")
        return "\n".join(lines) + "\n"

    def _chain(self, chain: str, names: tuple[str, str, str]) -> str:
        is_forwarded = self.direction in (FORWARD, PUBLISHED)
        return {"to": names[2 * is_forwarded], "from": names[2 if is_forwarded else 1]}.get(
            chain, chain
        )

    def _iptables(self, rule: str) -> None:
        tool = self.case.tool if self.family == IP4 else self.case.tool.replace("ip", "ip6", 1)
        table, chain, words = rule.split(" ", 2)
        chain = self._chain(chain, ("OUTPUT", "INPUT", "FORWARD"))
        flush = (tool, "-t", table, "-F", chain)
        self.run(tool, "-w", "-t", table, "-A", chain, *self.fill(words).split(), undo=flush)

    def _program(self) -> Seen:
        assert self.case.program
        opened = self.site.opened()
        try:
            seen = Seen(self.case.program(self))
        except DmmError as error:
            return Seen({"outcome": str(error)})
        if self.site.carrier in USER:
            seen.carried = "user" if self.site.opened() > opened else "kernel"
        return seen

    def _ends(self) -> tuple[Agent, Agent]:
        """Who connects, and who serves."""
        site = self.site
        client, server = {
            CONNECT: (site.app, site.far),
            LISTEN: (site.far, site.app),
            FORWARD: (site.inside, site.far),
            PUBLISHED: (site.far, site.inside),
        }[self.direction]
        return client, getattr(site, self.case.server) if self.case.server else server

    def _connections(self) -> Seen:
        seen, case = Seen(), self.case
        client, server = self._ends()
        own = client if self.direction in (CONNECT, FORWARD) else server
        for_client = case.app if own is client else case.app.get("other", {})
        for_server = case.app if own is server else case.app.get("other", {})
        listening = server.ask(
            "listen", address="0.0.0.0" if self.family == IP4 else "::", port=int(self.words["serves"]),
            **_asked(for_server, "bind"),
        )  # fmt: skip
        if "error" in listening:
            seen.facts["listen"] = listening["error"]
            return seen
        self.before = net_dev(self.host)
        opened = self.site.opened()
        told: dict[str, Any] = {
            "address": self.words["target"], "port": self.port, "up": case.size, "down": case.size, "seed": SEED,
        } | _asked(for_client)  # fmt: skip
        if told.get("bind"):
            told["bind"] = self.words[told["bind"]]
        held = []
        try:
            for number in range(case.connections):
                got = client.ask("connect", **told)
                name = "outcome" if case.connections == 1 else f"outcome {number + 1}"
                seen.facts[name] = self._outcome(got)
                if "socket" in got:
                    held.append(got)
            first = held[0] if held else {}
            if first:
                seen.facts["client sees"] = self._names(first, first)
                seen.facts["server sees"] = self._names(first["server"], first)
                if case.mbit:
                    seen.facts["rate"] = self._rate(first)
                self._who_carries(seen, own, first, opened)
            for watch in case.during:
                seen.facts |= {watch.__name__.replace("_", " "): watch(self, first)}
        finally:
            ends = [client.ask("close", socket=got["socket"])["end"] for got in held]
            if any(end != "clean" for end in ends):
                seen.facts["end"] = ends
            came = [one.get("came", 0) for one in server.ask("served")["served"]]
            if not held and came:
                seen.facts["server got"] = [amount(size, case.size) for size in came]
            for watch in case.after:
                seen.facts |= {
                    watch.__name__.replace("_", " ") + " after": watch(self, first if held else {})
                }
            server.ask("unlisten", listener=listening["listener"])
        return seen

    @staticmethod
    def _outcome(got: dict[str, Any]) -> str:
        if "error" in got:
            return f"{got['error']} {'at connect' if got['at'] == 'connect' else 'once connected'}"
        broken = [way for way in ("up", "down") if not got[way]]
        return f"damaged: {' and '.join(broken)}" if broken else "whole both ways"

    def _names(self, ends: dict[str, Any], first: dict[str, Any]) -> str:
        return f"{self._end(ends['local'], first)} to {self._end(ends['peer'], first)}"

    def _end(self, end: list[Any], first: dict[str, Any]) -> str:
        address, port = end
        app = first["local"][1]
        known = {self.port: "port", self.port2: "port2", app: "app"}
        return f"{self.site.name_of(address)}:{known.get(port, 'another port')}"

    def _rate(self, got: dict[str, Any]) -> str:
        """Of the way from this host, or, for a rate below zero, of the way to it."""
        is_up = (self.direction in (CONNECT, FORWARD)) == (self.case.mbit > 0)
        mbit = self.case.size * 8e-6 / max(got["up_s" if is_up else "down_s"], 1e-9)
        share = mbit / abs(self.case.mbit)
        self.scratch["mbit"] = mbit
        return (
            "held"
            if 0.5 <= share <= 1.25
            else "not held"
            if share > 1.25
            else "far below the limit"
        )

    def _who_carries(self, seen: Seen, own: Agent, first: dict[str, Any], opened: int) -> None:
        if self.site.carrier not in USER:
            return
        ports = {
            first["local"][1],
            self.port,
            self.port2,
            first["peer"][1],
            first["server"]["peer"][1],
        }
        rows = [f for f in self.site.flows() if {f["sport"], f["dport"]} <= ports]
        took = self.site.opened() - opened
        named = any(row["stack"] == "ours" for row in rows)
        seen.carried = "user" if took else "kernel"
        if named and not took:
            seen.facts["flows"] = "names the user stack, and the kernel carries it"
        if took and not named and own in (self.site.app,):
            seen.facts["flows"] = "does not name the user stack, which carries it"
        if seen.carried == "kernel":
            said = [str(row.get("why") or row.get("reason") or "") for row in rows]
            seen.reason = next((text for text in said if text), "")


def settled(cell: Cell, read: Any, is_settled: Any) -> Any:
    """What read() gives once it is settled, or after a second."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: is_settled(read()), 1.0)
    return read()


def _asked(app: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What a case asks of an end, with how long that waits: longer on a machine that is slow."""
    asked = {key: value for key, value in app.items() if key not in ("other", *without)}
    return asked | {"patience": patient(asked.get("patience", PATIENCE_S))}
