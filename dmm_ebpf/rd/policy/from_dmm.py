# SPDX-License-Identifier: Apache-2.0
"""From the files of FD.io DMM, rd_config.json and module_config.json, to a policy's text.

Owns the reading of both, as leniently as people wrote them (comments, trailing commas, numbers as
texts, `priorty`), the order that was meant there (longest prefix, then protocol, then the default
stack), and the list of what cannot be carried over. Pure. The keys are those of the samples that
came with DMM: ip_route (subnet, type), prot_route (proto_type, type), default_stack_name and
module_list (stack_name, libname, loadtype, deploytype, maxfd, minfd, priority, stackid).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dmm_ebpf.digits import whole
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.model import BUILT_IN, KERNEL
from dmm_ebpf.rd.policy.readers import MAX_NAME
from dmm_ebpf.rd.policy.values import PROTOCOL_NAMES, shown

TABLE = "dmm"
_MAX_ENTRIES = 100_000
# Strings first, so that what looks like a comment in one is none
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)
_KERNELS = ("kernel", "nstack-kernel", "linux")
# Keys of a module that mean nothing to a stack process, and why
_LEFT = {
    "libname": "a stack process is not a library; write a policy's `command` for one of your own",
    "function_name": "as libname",
    "loadtype": "as libname",
    "deploytype": "a stack has processes of its own: `processes`",
    "maxfd": "descriptors are not numbered by stacks; `max_connections` bounds a stack",
    "minfd": "as maxfd",
    "stackid": "stacks are numbered when a policy is applied",
    "priority": "routes decide, not the order of stacks",
}
_OTHER_NAMES = {"priorty": "priority", "fuction_name": "function_name", "load_type": "loadtype"}


@dataclass
class Imported:
    """A policy's text, and what of the files is not in it, a sentence each."""

    text: str = ""
    left: list[str] = field(default_factory=list)


def lenient_json(text: str, source: str) -> Any:
    """What JSON with comments and commas too many says. PolicyError: it is no JSON even so."""
    bare = _TOKENS.sub(lambda found: found[0] if found[0][0] == '"' else _blank(found[0]), text)
    bare = _TRAILING.sub(lambda found: found[1] or " ", bare)
    try:
        return json.loads(bare.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise PolicyError(
            f"read {source}:{error.lineno}",
            why=f"it is not JSON, even without comments: {error.msg}",
            hint="mend this line",
        ) from None
    except RecursionError:
        raise PolicyError(f"read {source}", why="it is nested too deeply", hint="") from None


def _blank(comment: str) -> str:
    """A comment's lines, so that errors name the right one."""
    return re.sub(r"[^\n]", " ", comment)


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyError(f"take {source}", why="it is not an object", hint="it begins with {")
    return value


def _entries(data: dict[str, Any], key: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, with their places."""
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise PolicyError(f"take {source}", why=f"{key} is not a list of objects", hint="")
    if len(value) > _MAX_ENTRIES:
        raise PolicyError(f"take {source}", why=f"{key} has more than {_MAX_ENTRIES} entries")
    for number, one in enumerate(value, 1):
        known = {_OTHER_NAMES.get(name, name): said for name, said in one.items()}
        yield f"{source}, {key}, entry {number}", known


def _text_of(entry: dict[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise PolicyError(f"take {place}", why=f"{key} is missing or no text", hint="")
    return str(value).strip()


class _Stacks:
    """The stacks by DMM's names, and by ours."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def name(self, theirs: str) -> str:
        """Ours for theirs. A name that ours may not have is written as near as can be."""
        if theirs.lower() in _KERNELS:
            return KERNEL
        if theirs not in self.names:
            plain = re.sub(r"[^A-Za-z0-9_.-]", "-", theirs).lstrip(".-")[:MAX_NAME] or "stack"
            taken = set(self.names.values()) | set(BUILT_IN)
            ours, number = plain, 2
            while ours in taken:
                end = f"-{number}"
                ours, number = plain[: MAX_NAME - len(end)] + end, number + 1
            self.names[theirs] = ours
        return self.names[theirs]


def import_dmm(routes: str, modules: str, routes_from: str, modules_from: str) -> Imported:
    """The policy that rd_config.json (routes) and module_config.json (modules, "" for none) mean.
    PolicyError: a file, or an entry of it, that nothing can be made of.
    """
    found = Imported()
    stacks = _Stacks()
    default = _modules(modules, modules_from, stacks, found) if modules else KERNEL
    config = _object(lenient_json(routes, routes_from), routes_from)
    written = [
        *_ip_routes(config, routes_from, stacks),
        *_protocol_routes(config, routes_from, stacks, found),
    ]
    _unknown(config, ("ip_route", "prot_route"), routes_from, found)
    if default != KERNEL:
        written.append(("default", "", default))
    found.text = _toml(stacks, _once(written, found))
    return found


def _modules(text: str, source: str, stacks: _Stacks, found: Imported) -> str:
    """Notes the modules' stacks, and what of them means nothing here. Returns the default one."""
    config = _object(lenient_json(text, source), source)
    for place, entry in _entries(config, "module_list", source):
        name = _text_of(entry, "stack_name", place)
        if stacks.name(name) == KERNEL:
            continue
        for key in entry:
            if key != "stack_name":
                why = _LEFT.get(key, "no such thing is known here")
                found.left.append(f"{place} ({name}): {key}: {why}")
    _unknown(config, ("default_stack_name", "module_list"), source, found)
    if "default_stack_name" not in config:
        return KERNEL
    return stacks.name(_text_of(config, "default_stack_name", source))


def _unknown(config: dict[str, Any], known: tuple[str, ...], source: str, found: Imported) -> None:
    found.left += [f"{source}: {shown(key)}: no such thing is known here" for key in config
                   if key not in known]  # fmt: skip


Written = tuple[str, str, str]  # to, proto, stack


def _ip_routes(config: dict[str, Any], source: str, stacks: _Stacks) -> Iterator[Written]:
    for place, entry in _entries(config, "ip_route", source):
        subnet = _text_of(entry, "subnet", place)
        try:
            network = ipaddress.ip_network(subnet, strict=False)
        except ValueError:
            raise PolicyError(
                f"take {place}",
                why=f"subnet {shown(subnet)} is no prefix",
                hint="write it as 192.0.2.0/24",
            ) from None
        yield str(network), "", stacks.name(_text_of(entry, "type", place))


def _protocol_routes(
    config: dict[str, Any], source: str, stacks: _Stacks, found: Imported
) -> Iterator[Written]:
    """As routes to every address: a subnet's prefix is longer, but for one of length 0, which DMM
    asked first.
    """
    everything = any(
        _text_of(entry, "subnet", place).endswith("/0")
        for place, entry in _entries(config, "ip_route", source)
    )
    for place, entry in _entries(config, "prot_route", source):
        number = _text_of(entry, "proto_type", place)
        stack = stacks.name(_text_of(entry, "type", place))
        name = PROTOCOL_NAMES.get(whole(number, 256) or 0)
        if everything:
            found.left.append(f"{place}: a subnet of length 0 comes first, so it is never asked")
        elif name is None:
            found.left.append(
                f"{place}: proto_type {shown(number)}: only TCP (6) and UDP (17) are routed"
            )
        else:
            yield "default", name, stack


def _once(written: list[Written], found: Imported) -> list[Written]:
    """Of two for the same flows the first counts, as in DMM, which looked them up in order."""
    kept: dict[tuple[str, str], str] = {}
    for to, proto, stack in written:
        first = kept.setdefault((to, proto), stack)
        if first != stack:
            found.left.append(f"route to {to} by {stack}: an earlier one is by {first}")
    return [(to, proto, stack) for (to, proto), stack in kept.items()]


def _toml(stacks: _Stacks, written: list[Written]) -> str:
    parts = [f"# DMM's {shown(theirs)}\n[stacks.{ours}]\nkind = \"user\"\n" if theirs != ours
             else f'[stacks.{ours}]\nkind = "user"\n'
             for theirs, ours in stacks.names.items()]  # fmt: skip
    if written:
        parts.append(f'[[rules]]\ntable = "{TABLE}"\n')
    for to, proto, stack in written:
        lines = [f"[[tables.{TABLE}.routes]]", f'to = "{to}"']
        lines += [f'proto = "{proto}"'] if proto else []
        parts.append("\n".join([*lines, f'stack = "{stack}"', ""]))
    return "\n".join(parts)
