# SPDX-License-Identifier: Apache-2.0
"""From a policy file to a Policy, or to one sentence for each thing that is wrong, and where.

Owns what a policy may say, and the checks that need more than one key to see; the text and the
places in it are policytext.py's. A Policy that load() or parse() returns is complete: every name it
uses exists, no two routes contradict, and it fits the limits of abi.h. Nothing here touches the
kernel; what only this host can answer (does the cgroup exist, is the congestion control loaded) is
compile.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError, apart
from dmm_ebpf.kit.names import TRANSPORT, is_plugin
from dmm_ebpf.rd.policy import mptcp
from dmm_ebpf.rd.policy.adaptive_route import auto_of, is_adaptive, may_serve
from dmm_ebpf.rd.policy.cgroupglob import globs_of
from dmm_ebpf.rd.policy.compile_rules import MAX_CHECKS, count_checks
from dmm_ebpf.rd.policy.hosts import Labels, Selector, parse_labels, parse_selector
from dmm_ebpf.rd.policy.keyed import KeysRefusedError
from dmm_ebpf.rd.policy.model import (
    AUTO,
    BUILT_IN,
    KERNEL,
    MAX_STACKS,
    MAX_USER_PROCESSES,
    STACK_RECORDS,
    TABLE_KEYS,
    TABLES,
    Auto,
    AutoRecord,
    Policy,
    RejectStack,
    RouteRecord,
    Stack,
    UserStack,
)
from dmm_ebpf.rd.policy.named import MAX_NAMED, Named
from dmm_ebpf.rd.policy.policytext import MAX_ERRORS, EnoughError, KeyPath, PolicyText
from dmm_ebpf.rd.policy.routes import Contradiction, Match, RouteTable, action_table
from dmm_ebpf.rd.policy.routes_file import (
    MAX_ROUTES,
    Stamp,
    read_routes,
    read_text_file,
    require_regular,
    stamp_of,
)
from dmm_ebpf.rd.policy.rule import REFUSING, SOCKET_KEYS, Rule, forward_entries
from dmm_ebpf.rd.policy.suggest import suggest
from dmm_ebpf.rd.policy.toml_limits import MAX_POLICY_BYTES
from dmm_ebpf.rd.policy.values import PROTOCOL_NAMES, Prefix, ValueRefusedError, range_text, shown

__all__ = ["MAX_POLICY_BYTES", "Policy", "load", "parse", "read"]

_FORWARD_KEYS = {"sources": "from", "in_interface": "in_interface"}


def load(path: Path) -> Policy:
    """The policy in the file at path; PolicyError when it is refused."""
    return parse(read(path), source=str(path), base=path.parent)


def read(path: Path, what: str = "policy") -> str:
    """The text of the policy file at path, or of another of that length, which errors call what;
    PolicyError when there is none.
    """
    data = read_text_file(path, what, MAX_POLICY_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            f"accept {path}:{line}", why="it is not UTF-8", hint="save it as UTF-8"
        ) from None


def parse(text: str, *, source: str, base: Path, files: dict[Path, Stamp] | None = None) -> Policy:
    """The policy in text. source names it in errors; routes_from is relative to base. files, if
    given, is told the routes files that were looked at, also when the policy is refused.
    """
    try:
        return _Parser(text, source, base, {} if files is None else files).policy()
    except PolicyError as error:
        raise apart(error) from None


class _Written(NamedTuple):
    """A route, and where it stands."""

    to: str
    match: Match
    stack: str
    place: str


class _Parser(PolicyText):
    """One policy text on its way to a Policy. What is wrong with one part of it keeps no other
    from being read.
    """

    def __init__(self, text: str, source: str, base: Path, files: dict[Path, Stamp]) -> None:
        super().__init__(text, source)
        self.base = base
        self.stacks: dict[str, Stack] = {}
        self.named: Collection[str] = ()  # also those that are refused
        self.refusing: set[str] = set()  # those of REFUSING that are named
        self.files = files
        self.tables: dict[str, RouteTable] = {}
        self.rules: list[Rule] = []
        self.written: list[int] = []  # where in the text each of them stands
        self.autos: dict[str, Auto] = {}
        self.selectors: dict[str, Selector] = {}
        self.labels: Labels | None = None

    def policy(self) -> Policy:
        data = self.toml()
        with contextlib.suppress(EnoughError):
            self._read(data)
        if self.wrong:
            raise self._refusal()
        rules, tables = self._of_this_host()
        stacks = {KERNEL: BUILT_IN[KERNEL], **self.stacks}
        stacks |= {name: BUILT_IN[name] for name in REFUSING if name in self.refusing}
        return Policy(
            source=self.source,
            text=self.text,
            stacks=stacks,
            rules=tuple(self.rules[index] for index in rules),
            tables=tables,
            files=self.files,
            labels=self.labels,
            written=tuple(self.written[index] for index in rules),
            autos=self.autos,
            old_names=tuple(self.old_names),
        )

    def _refusal(self) -> PolicyError:
        """All that is wrong, which nothing here has any more: what raises it would else keep all
        that was read until the garbage collector comes, as the raised one tells of this frame.
        """
        first, *others = sorted(self.wrong, key=self.order_of)
        first.others, first.enough = tuple(others), len(self.wrong) >= MAX_ERRORS
        self.wrong = []
        return first

    def _of_this_host(self) -> tuple[list[int], dict[str, RouteTable]]:
        """The rules that are for it, and the tables without those that are for others alone."""
        mine, others = [], set()
        for index, rule in enumerate(self.rules):
            chosen = [self.selectors[name] for name in rule.hosts or ()]
            if self.labels is None or not chosen or any(one.holds(self.labels) for one in chosen):
                mine.append(index)
            else:
                others.add(rule.table)
        others -= {self.rules[index].table for index in mine}
        return mine, {name: one for name, one in self.tables.items() if name not in others}

    def _read(self, data: dict[str, Any]) -> None:
        for key in data:
            if key not in TABLES:
                self.note(self.unknown_key((key,), TABLES))
        for read in (
            self._read_hosts,
            self._read_stacks,
            self._read_tables,
            self._read_rules,
            self._check_limits,
            self._check_sets,
            self._check_mptcp,
        ):
            with self.noting():
                read(data)

    def _read_hosts(self, data: dict[str, Any]) -> None:
        for name, value in self.table(data, ("hosts",)).items():
            path: KeyPath = ("hosts", name)
            self.name(name, "selector of hosts", path)
            try:
                self.selectors[name] = parse_selector(value)
            except ValueRefusedError as refused:
                raise self.refused(path, refused.why, refused.hint) from None
        if "labels" in data:
            try:
                self.labels = parse_labels(data["labels"])
            except ValueRefusedError as refused:
                raise self.refused(("labels",), refused.why, refused.hint) from None

    def _read_stacks(self, data: dict[str, Any]) -> None:
        stacks = self.table(data, ("stacks",))
        if len(stacks) > MAX_STACKS:
            raise self.refused(
                ("stacks",),
                f"there are {len(stacks)} stacks",
                f"a policy has at most {MAX_STACKS}",
            )
        self.named = stacks.keys()
        for name, stack in stacks.items():
            with self.noting():
                self.stacks[name] = self._read_stack(name, stack)
        users = {name: stack for name, stack in self.stacks.items() if isinstance(stack, UserStack)}
        processes = 0
        for name, user in users.items():
            processes += user.processes
            if processes > MAX_USER_PROCESSES:
                why = f"{len(users)} user stacks have {sum(u.processes for u in users.values())} processes together"
                hint = f"a policy has at most {MAX_USER_PROCESSES}"
                raise self.refused(("stacks", name), why, hint)
            with self.noting():
                self._check_fallback(name, user)
                self._check_command(name, user)
                self._check_negotiate(name, user)

    def _read_stack(self, name: str, data: object) -> Stack:
        path: KeyPath = ("stacks", name)
        self.name(name, "stack", path)
        if name in BUILT_IN:
            raise self.refused(
                path, f'"{name}" is always defined and cannot be redefined', "choose another name"
            )
        if not isinstance(data, dict):
            raise self.refused(
                path, f"{shown(data)} is not a table", f"begin it with [stacks.{name}]"
            )
        kind = data.get("kind")
        if kind is None:
            raise self.refused(
                path, 'the key "kind" is missing', 'expected kind = "kernel", "user" or "reject"'
            )
        if not isinstance(kind, str) or kind not in STACK_RECORDS:
            hint = 'expected "kernel", "user" or "reject"'
            raise self.refused((*path, "kind"), f"{shown(kind)} is not a kind of stack", hint)
        return self.record(STACK_RECORDS[kind], data, path)

    def _check_fallback(self, name: str, stack: UserStack) -> None:
        path: KeyPath = ("stacks", name, "fallback")
        hint = self._stack_problem(stack.fallback)
        if hint is not None:
            raise self.refused(path, f"no stack is called {shown(stack.fallback)}", hint)
        if isinstance(self.stacks.get(stack.fallback), UserStack):
            itself = "itself" if stack.fallback == name else f'the user stack "{stack.fallback}"'
            raise self.refused(path, f"it falls back to {itself}", "name a kernel or reject stack")

    def _check_command(self, name: str, stack: UserStack) -> None:
        if stack.command and stack.io == "af_xdp":
            raise self.refused(
                ("stacks", name, "io"),
                "a process of one's own gets packets by tap alone",
                'leave io out, or set io = "tap"',
            )
        if stack.command and stack.udp:
            raise self.refused(
                ("stacks", name, "udp"),
                "a process of one's own carries TCP alone",
                "leave udp out: the kernel serves UDP",
            )

    def _check_negotiate(self, name: str, stack: UserStack) -> None:
        if stack.negotiate == "demand" and stack.syn_cookies == "always":
            raise self.refused(
                ("stacks", name, "negotiate"),
                'no SYN cookie carries an agreement, and syn_cookies is "always"',
                'use negotiate = "allow", or syn_cookies = "auto"',
            )
        if stack.negotiate == "demand" and is_plugin(stack.transport, TRANSPORT):
            raise self.refused(
                ("stacks", name, "negotiate"),
                f'transport "{stack.transport}" is a plug-in, and agrees on nothing',
                "leave negotiate out",
            )

    def _stack_problem(self, name: str) -> str | None:
        """None when routes may name the stack, else what to do."""
        if name in self.named or name == KERNEL:  # one that is refused is told of once
            return None
        if name in REFUSING:
            self.refusing.add(name)
            return None
        return suggest(name, [*self.named, *BUILT_IN], "stack")

    def _read_tables(self, data: dict[str, Any]) -> None:
        for name, table in self.table(data, ("tables",)).items():
            self.tables[name] = RouteTable(name)
            with self.noting():
                self._read_table(self.tables[name], table)
            self._check_total()  # before another file is read

    def _read_table(self, table: RouteTable, data: object) -> None:
        path: KeyPath = ("tables", table.name)
        self.name(table.name, "table", path)
        header = f"[[tables.{table.name}.routes]]"
        if not isinstance(data, dict):
            raise self.refused(path, f"{shown(data)} is not a table", f"begin it with {header}")
        for key in data:
            if key not in TABLE_KEYS:
                self.note(self.unknown_key((*path, key), TABLE_KEYS))
        auto = None
        with self.noting():
            auto = self._auto_of_table(data, path)
        with self.noting():
            routes = self.array(data.get("routes", []), (*path, "routes"), header)
            for position, route in enumerate(routes):
                try:
                    self._add_route(
                        table,
                        position,
                        self.record(RouteRecord, route, (*path, "routes", position)),
                        auto,
                    )
                except (
                    PolicyError
                ) as error:  # cheaper than _noting(), of which there may be a million
                    self.note(error)
        table.inline_count = len(table)
        if "routes_from" in data:
            with self.noting():
                self._read_file(table, data["routes_from"], (*path, "routes_from"), auto)
        self._check_contradictions(table)

    def _auto_of_table(self, data: dict[str, Any], path: KeyPath) -> Auto | None:
        """What "auto" means in the table's file, and where a route names no candidates."""
        keys = AutoRecord.keys()
        own = {key: data[key] for key in keys if key in data}
        if not own:
            return None
        if AUTO in self.named:
            key = next(iter(own))
            why = f"the policy's stack {shown(AUTO)} is what the name means"
            raise self.refused((*path, key), why, f"take {key} away, or rename the stack")
        one = self.record(AutoRecord, own, path)
        route = RouteRecord(to=(), stack=AUTO, **vars(one))
        return self._auto(route, path)

    def _add_route(
        self, table: RouteTable, position: int, route: RouteRecord, auto: Auto | None
    ) -> None:
        path: KeyPath = ("tables", table.name, "routes", position)
        name = route.stack
        own = route.candidates or route.goal or route.share
        if auto and route.stack == AUTO and not own:
            name = auto.name
        elif is_adaptive(route, self.named):
            name = self._auto(route, path).name
        elif (hint := self._stack_problem(name)) is not None:
            raise self.refused((*path, "stack"), f"no stack is called {shown(name)}", hint)
        match = table.intern_match(route.match)
        stack = table.intern_stack(name)
        for to in route.to:
            if isinstance(to, Prefix):
                table.add(to, match, stack, position)
            else:
                table.add_set(to, match, stack, position, inline=True)

    def _auto(self, route: RouteRecord, path: KeyPath) -> Auto:
        """What an adaptive route names."""
        try:
            auto = auto_of(route, self.stacks, self._stack_problem)
        except KeysRefusedError as error:
            ((key, refused),) = error.keys.items()
            raise self.refused_key(path, key, refused) from None
        return self.autos.setdefault(auto.name, auto)

    def _read_file(self, table: RouteTable, name: object, path: KeyPath, auto: Auto | None) -> None:
        if not isinstance(name, str) or not name or "\0" in name:
            raise self.refused(
                path, f"{shown(name)} is not a file's name", 'expected for example "prefixes.csv"'
            )
        file = self.base / name
        self.files[file] = stamp_of(file)
        try:
            require_regular(file, "routes file")
        except PolicyError as error:
            raise self.refused(path, f"routes file {file}: {error.why}", error.hint) from None
        called = {AUTO: auto.name} if auto else {}
        read_routes(file, table, partial(self._file_problem, table.name), self.note, called)

    def _file_problem(self, table: str, name: str) -> str | None:
        """_stack_problem() of a routes file."""
        if name == AUTO and AUTO not in self.named:
            return f'say among whom it chooses: candidates = ["kernel", ...] below [tables.{table}]'
        return self._stack_problem(name)

    def _check_contradictions(self, table: RouteTable) -> None:
        table.index_duplicates()
        written = partial(self._written, table), partial(self._written_set, table)
        found = table.contradiction(), table.set_contradiction()
        for one, read in zip(found, written, strict=True):
            if one is not None:
                raise self._contradicts(table.name, one, read(one.first), read(one.second))

    def _contradicts(
        self, table: str, found: Contradiction, first: _Written, second: _Written
    ) -> PolicyError:
        ports = (
            f"port {range_text(found.first_port, found.last_port)}"
            if second.match.ports
            else "every port"
        )
        protocol = f"{PROTOCOL_NAMES[found.proto]} " if found.proto else ""
        return PolicyError(
            f"accept {second.place}",
            why=f"table {table} sends {second.to} {protocol}{ports} to {second.stack} here, and to "
            f"{first.stack} at {first.place}",
            hint="remove one of the two routes, or make one more specific",
        )

    def _written(self, table: RouteTable, index: int) -> _Written:
        route = table[index]
        place = self._route_place(table, index)
        return _Written(str(route.prefix), route.match, route.stack, place)

    def _written_set(self, table: RouteTable, index: int) -> _Written:
        one = table.sets[index]
        where = table.where_set(index)
        if one.inline:
            where = self.place(("tables", table.name, "routes", one.origin))
        return _Written(str(one.to), table.matches[one.match], table.stack_names[one.stack], where)

    def _route_place(self, table: RouteTable, index: int) -> str:
        if index < table.inline_count:
            return self.place(("tables", table.name, "routes", table.origin[index]))
        return table.where(index)

    def _read_rules(self, data: dict[str, Any]) -> None:
        items = self.array(data.get("rules", []), ("rules",), "[[rules]]")
        if len(items) > C.DMM_MAX_RULES:
            hint = f"a policy has at most {C.DMM_MAX_RULES}"
            raise self.refused(("rules", C.DMM_MAX_RULES), f"there are {len(items)} rules", hint)
        names: dict[str, int] = {}
        for index, item in enumerate(items):
            with self.noting():
                self.rules.append(self._read_rule(index, item, names))
                self.written.append(index)
        self._check_forwards(self.rules)
        self._check_checks(self.rules)

    def _read_rule(self, index: int, data: object, names: dict[str, int]) -> Rule:
        path: KeyPath = ("rules", index)
        rule = self.record(Rule, data, path)
        if rule.action:
            rule = self._acting(rule, path)
        self._check_choose(rule, path)
        if rule.table and rule.table not in self.tables:
            hint = suggest(rule.table, self.tables, "table")
            raise self.refused((*path, "table"), f"no table is called {shown(rule.table)}", hint)
        for name in rule.hosts or ():
            if name not in self.selectors:
                why = f"no selector of hosts is called {shown(name)}"
                raise self.refused((*path, "hosts"), why, suggest(name, self.selectors, "one"))
        if rule.name is not None:
            earlier = names.setdefault(rule.name, index)
            if earlier != index:
                why = f'rule {earlier + 1} is called "{rule.name}" too'
                raise self.refused((*path, "name"), why, "give each rule its own name")
        self._check_forward(rule, path)
        return self._by_interface(rule, path)

    def _acting(self, rule: Rule, path: KeyPath) -> Rule:
        """The rule with the table of its action, where all is refused."""
        if rule.table:
            why = "a rule that refuses looks in no table"
            raise self.refused((*path, "table"), why, "take table or action away")
        if not rule.direction & C.DMM_DIR_CONNECT:
            what = "forwarded" if rule.forwards else "opened by a client"
            why = f"what is {what} is not refused by policy"
            hint = 'use a packet filter, or direction = "connect"'
            raise self.refused((*path, "action"), why, hint)
        if rule.action in self.tables and not self.tables[rule.action].is_action:
            why = f"the table {rule.action} has the name of an action that a rule has"
            raise self.refused(("tables", rule.action), why, "give it another one")
        self.tables[rule.action] = action_table(rule.action)
        self.refusing.add(rule.action)
        return replace(rule, table=rule.action, direction=int(C.DMM_DIR_CONNECT))

    def _by_interface(self, rule: Rule, path: KeyPath) -> Rule:
        """A rule for sockets that are bound to a device is for those that connect."""
        if not rule.every("interface"):
            return rule
        if not rule.direction & C.DMM_DIR_CONNECT:
            why = "a listener that is bound to a device is the kernel's, whatever rules say"
            raise self.refused((*path, "direction"), why, 'leave it out, or say "connect"')
        return replace(rule, direction=int(C.DMM_DIR_CONNECT))

    def _check_choose(self, rule: Rule, path: KeyPath) -> None:
        if not rule.table and not rule.choose:
            raise self.refused_key(path, "table", None)
        for name in rule.choose:
            hint = self._stack_problem(name)
            if hint is not None:
                why = f"no stack is called {shown(name)}"
                raise self.refused((*path, "choose"), why, hint)
            if name in REFUSING or isinstance(self.stacks.get(name), RejectStack):
                why = f"{shown(name)} serves nothing that a program could choose"
                raise self.refused((*path, "choose"), why, "name kernel or user stacks")

    def _check_forward(self, rule: Rule, path: KeyPath) -> None:
        if not rule.forwards:
            for field_name, key in _FORWARD_KEYS.items():
                if getattr(rule, field_name) is not None:
                    why = "it is for flows that the host forwards"
                    raise self.refused(
                        (*path, key), why, 'add direction = "forward", or leave it out'
                    )
            return
        for key in (*SOCKET_KEYS, "not"):
            if getattr(rule, "excepted" if key == "not" else key) not in {None, ()}:
                why = 'with direction = "forward" there is no socket that it could be asked of'
                raise self.refused((*path, key), why, "name from, in_interface or both instead")
        if rule.choose:
            why = 'with direction = "forward" there is no program that could choose'
            raise self.refused((*path, "choose"), why, "take it away")
        for name in may_serve(self.tables[rule.table].stack_names, self.autos):
            stack = self.stacks.get(name)
            if isinstance(stack, UserStack) and stack.syn_cookies == "always":
                why = f'its stack {name} has syn_cookies = "always", which a forwarded connection cannot have'
                raise self.refused((*path, "table"), why, 'use syn_cookies = "auto"')

    def _check_forwards(self, rules: list[Rule]) -> None:
        total = 0
        for index, rule in enumerate(rules):
            total += forward_entries(rule)
            if total > C.DMM_MAX_FORWARDS:
                why = f"the rules for what is forwarded have more than {C.DMM_MAX_FORWARDS} sources together"
                hint = f"a policy has at most {C.DMM_MAX_FORWARDS}, and a rule without from counts as one"
                raise self.refused(("rules", index), why, hint)

    def _check_checks(self, rules: list[Rule]) -> None:
        total, patterns = 0, set[str]()
        for index, rule in enumerate(rules):
            patterns |= set(globs_of(rule.every("cgroup")))
            if len(patterns) > C.DMM_MAX_GLOBS:
                why = f"the rules name more than {C.DMM_MAX_GLOBS} patterns of cgroups"
                hint = "join some by * or [..], or name a cgroup above them"
                raise self.refused(("rules", self.written[index]), why, hint)
            total += count_checks(rule)
            if total > MAX_CHECKS:
                why = f"the lists of the rules make more than {MAX_CHECKS} checks together"
                hint = "several lists of one rule count by their product; divide it, or name ranges"
                raise self.refused(("rules", self.written[index]), why, hint)

    def _check_limits(self, _data: dict[str, Any]) -> None:
        if len(self.stacks) + len(self.refusing) > MAX_STACKS:
            named = ", ".join(f'"{name}"' for name in REFUSING if name in self.refusing)
            hint = f"a policy has at most {MAX_STACKS} together"
            raise self.refused(
                ("stacks",), f"there are {len(self.stacks)} stacks, and {named}", hint
            )

    def _check_sets(self, _data: dict[str, Any]) -> None:
        named: set[Named] = {one.to for table in self.tables.values() for one in table.sets}
        named.update(one for rule in self.rules for one in rule.source_sets)
        if len(named) > MAX_NAMED:
            why = f"routes and rules name {len(named)} nft sets and hostnames"
            path = "tables" if self.tables else "rules"
            raise self.refused((path,), why, f"a policy has at most {MAX_NAMED}")

    def _check_mptcp(self, _data: dict[str, Any]) -> None:
        rules = dict(zip(self.written, self.rules, strict=True))
        for path, why, hint in mptcp.refusals(self.stacks, self.tables, self.autos, rules):
            self.note(self.refused(path, why, hint))

    def _check_total(self) -> None:
        counts = [len(table) for table in self.tables.values()]
        total = sum(counts)
        if max(counts, default=0) > MAX_ROUTES:
            return  # it was told of where it is, and was not read to its end
        if total > MAX_ROUTES:
            raise self.refused(
                ("tables",), f"there are {total} routes", f"a policy has at most {MAX_ROUTES}"
            )
