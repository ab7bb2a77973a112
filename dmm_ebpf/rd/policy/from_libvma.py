# SPDX-License-Identifier: Apache-2.0
"""From libvma.conf, by which programs that preload Mellanox's libvma are told what it serves, to a
policy's text.

Owns its statements (application-id, use, log; libvma's src/vma/util/libvma.conf tells of them), the
order that was meant there (the first match wins, and what nothing matches is vma's), and the list
of what cannot be carried over. Pure. Each `use` becomes a rule with a table of its own, since in
one table the longest prefix would win.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.from_dmm import Imported
from dmm_ebpf.rd.policy.values import shown

VMA = "vma"
_STACKS = {"vma": VMA, "os": "kernel"}
_ROLES = ("tcp_client", "tcp_server", "udp_connect", "udp_sender", "udp_receiver")
# Roles of sockets that peers come to, and the one with the other protocol
_SERVES = {"tcp_server": "udp_receiver", "udp_receiver": "tcp_server"}
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_USE = "expected use vma|os ROLE ADDRESS:PORTS[:ADDRESS:PORTS]"
_ALL = "0.0.0.0/0"  # libvma serves IPv4 alone
_HEAD = f'# Made of {{}} by dmm-ebpf policy import\n\n[stacks.{VMA}]\nkind = "user"\nudp = true\n'


class _End(NamedTuple):
    """An address with ports, each None for any."""

    prefix: str | None
    ports: str | None


@dataclass(frozen=True)
class _Use:
    line: int
    program: str | None  # None: any
    stack: str
    role: str
    first: _End
    second: _End  # the local one of a client


def import_libvma(text: str, source: str) -> Imported:
    """The policy that a libvma.conf means. PolicyError: a line that is none of its statements."""
    found = Imported()
    uses = list(_statements(text, source, found))
    parts = [_HEAD.format(source)]
    for use in uses:
        parts.append(_rule(use, uses, found, source))
    programs = {use.program: None for use in uses} or {None: None}
    comm = "" if None in programs else f"comm = {json.dumps([str(one) for one in programs])}\n"
    parts.append(f'\n# What nothing matches\n[[rules]]\nname = "rest"\n{comm}table = "rest"\n')
    parts.append(_table("rest", _ALL, VMA))
    if None in programs:
        found.left.append(
            f"{source}: it served the programs that preloaded libvma; the policy is for all of the "
            "cgroup that it is applied to"
        )
    found.text = "".join(parts)
    return found


def _statements(text: str, source: str, found: Imported) -> Iterator[_Use]:
    program: str | None = None
    carried = True
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        place = f"{source}:{number}"
        if not words:
            continue
        if words[0] == "application-id":
            program, carried = _application(words, place, found)
        elif words[0] == "log":
            found.left.append(f"{place}: log, since the director has a log of its own")
        elif words[0] != "use":
            why = f"{shown(words[0])} is no statement of libvma.conf"
            raise PolicyError(f"take {place}", why=why, hint="expected application-id, use or log")
        elif carried:
            yield _use(number, words, program, place)


def _application(words: list[str], place: str, found: Imported) -> tuple[str | None, bool]:
    """The program of the statements that follow, and whether they can be carried over."""
    name, number = [*words[1:3], "*", "*"][:2]
    if number != "*":
        found.left.append(f"{place}: what is for the id {number}, which only libvma knows")
        return None, False
    if name == "*":
        return None, True
    if "*" in name or "?" in name:
        found.left.append(f"{place}: what is for {name}, since rules match names whole")
        return None, False
    comm = name.encode()[: C.DMM_COMM_LEN - 1].decode(errors="ignore")
    if comm != name:
        found.left.append(f"{place}: all of {name} but {comm}, as the kernel cuts names")
    return comm, True


def _use(number: int, words: list[str], program: str | None, place: str) -> _Use:
    if len(words) != 4 or words[1] not in _STACKS or words[2] not in _ROLES:
        raise PolicyError(f"take {place}", why=f"{shown(' '.join(words))} is no use", hint=_USE)
    parts = words[3].split(":")
    if len(parts) not in (2, 4):
        raise PolicyError(f"take {place}", why=f"{shown(words[3])} has no ports", hint=_USE)
    ends = [_end(parts[at], parts[at + 1], place) for at in range(0, len(parts), 2)]
    first, second = [*ends, _End(None, None)][:2]
    return _Use(number, program, _STACKS[words[1]], words[2], first, second)


def _end(address: str, ports: str, place: str) -> _End:
    prefix = None
    if address != "*":
        try:
            prefix = str(ipaddress.IPv4Network(address, strict=False))
        except ValueError:
            why = f"{shown(address)} is no IPv4 address or prefix"
            raise PolicyError(f"take {place}", why=why, hint=_USE) from None
    if ports == "*":
        return _End(prefix, None)
    match = _PORTS.fullmatch(ports)
    if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= 65535:
        raise PolicyError(f"take {place}", why=f"{shown(ports)} are no ports", hint=_USE)
    return _End(prefix, ports)


def _rule(use: _Use, uses: Sequence[_Use], found: Imported, source: str) -> str:
    """The rule and the table of a statement; empty: it cannot be carried over."""
    place = f"{source}:{use.line}"
    local = use.first if use.role in _SERVES else use.second
    if local.prefix is not None:
        found.left.append(f"{place}: no rule asks for the local address {local.prefix}")
        return ""
    if use.role == "udp_connect":
        found.left.append(
            f"{place}: that only connected sockets are meant; it is for all that send there"
        )
    name = f"line-{use.line}"
    lines = [f'\n[[rules]]\nname = "{name}"']
    lines += [f"comm = {json.dumps(use.program, ensure_ascii=False)}"] if use.program else []
    lines += [f'local_port = "{local.ports}"'] if local.ports else []
    direction = "listen" if use.role in _SERVES else "connect"
    lines += [f'direction = "{direction}"', f'table = "{name}"\n']
    rule, more = "\n".join(lines), f'proto = "{use.role[:3]}"\n'
    if use.role in _SERVES:
        other = _SERVES[use.role]
        rest = _table(name, _ALL, _other(use, uses, found, source), f'proto = "{other[:3]}"\n')
        return rule + _table(name, _ALL, use.stack, more) + rest
    more += f'ports = "{use.first.ports}"\n' if use.first.ports else ""
    return rule + _table(name, use.first.prefix or _ALL, use.stack, more)


def _other(use: _Use, uses: Sequence[_Use], found: Imported, source: str) -> str:
    """The stack of such sockets with the other protocol: rules for who serves ask for none, and the
    first that matches decides for both.
    """
    first, last = _range(use.first)
    for one in uses:
        if one.role != _SERVES[use.role] or one.first.prefix is not None:
            continue
        begins, ends = _range(one.first)
        if one.program in {None, use.program} and begins <= first and last <= ends:
            return one.stack
        both = None in {one.program, use.program} or one.program == use.program
        if one.line > use.line and both and begins <= last and first <= ends:
            found.left.append(
                f"{source}:{one.line}: those of its ports that line {use.line} names, too"
            )
    return VMA


def _range(end: _End) -> tuple[int, int]:
    first, _, last = (end.ports or "1-65535").partition("-")
    return int(first), int(last or first)


def _table(name: str, to: str, stack: str, more: str = "") -> str:
    return f'\n[[tables.{name}.routes]]\nto = "{to}"\n{more}stack = "{stack}"\n'
