# SPDX-License-Identifier: Apache-2.0
"""From what starts programs by Onload to a policy's text: a shell script, a unit of systemd, a
profile (.opf), with lines as `EF_POLL_USEC=100 onload --profile=latency /usr/bin/app`.

Owns the reading of such lines, what Onload's options of the environment (EF_*; its User Guide,
UG1586, tells of them) mean to a user stack, and the list of what cannot be carried over. Pure: no
other file is looked at, and no shell is run. A variable of the environment comes before a profile,
as Onload has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.from_dmm import Imported
from dmm_ebpf.rd.policy.model import MAX_BUFFER_BYTES, MAX_BUSY_POLL_US
from dmm_ebpf.rd.policy.startlines import assignments, comm_of, lines

STACK = "onload"
_LIBRARY = "libonload.so"
_WITH_VALUE = ("-p", "--profile", "-a", "--app", "--preload")  # of the command onload
# What these profiles, which come with Onload, have of what is carried over
_PROFILES = {"latency": {"EF_POLL_USEC": "100000"}, "latency-best": {"EF_POLL_USEC": "100000"}}
_NUMBER = re.compile(r"-?[0-9]{1,18}")

Environment = Mapping[str, str]


@dataclass(frozen=True)
class _Start:
    """A program that is started by Onload, and with what; program empty: any."""

    place: str
    program: str
    environment: Environment


@dataclass
class _Stack:
    """options: of a policy's stack. routes: more of its route. programs: those that have it."""

    options: dict[str, Any]
    routes: str
    programs: list[str] = field(default_factory=list)


def import_onload(text: str, source: str) -> Imported:
    """The policy that the file means. PolicyError: it says nothing of Onload."""
    found = Imported()
    stacks: list[_Stack] = []
    for start in _starts(text, source, found):
        _add(start, stacks, found)
    if not stacks and not found.left:
        hint = "expected lines such as onload --profile=latency /usr/bin/app"
        raise PolicyError(f"take {source}", why="no program is started by Onload there", hint=hint)
    parts = [f"# Made of {source} by dmm-ebpf policy import\n"]
    for number, stack in enumerate(stacks, 1):
        parts.append(_text(stack, STACK if number == 1 else f"{STACK}-{number}"))
    of = "all programs" if any("" in one.programs for one in stacks) else "all of these names"
    found.left.append(
        f"{source}: that it was for the processes that were started so, and for what they started; "
        f"the policy is for {of} in the cgroup that it is applied to"
    )
    found.text = "".join(parts)
    return found


def _starts(text: str, source: str, found: Imported) -> Iterator[_Start]:
    environment: dict[str, str] = {}
    is_profile = started = False
    for place, words in lines(text, source, (STACK, "EF_"), found.left):
        own, command = assignments(words)
        if command and command[0] == "onload_set":
            own = assignments(["=".join(command[1:3])])[0]
            environment |= {name: own[name] for name in own if name not in environment}
            is_profile = True
        elif command and command[0] == "onload_import":
            found.left.append(f"{place}: the profile {' '.join(command[1:2])}, another file")
        elif not command:
            environment |= own
        elif (start := _start(place, environment | own, command, found)) is not None:
            started = True
            yield start
    if is_profile and not started:
        yield _Start(source, "", environment)


def _start(
    place: str, environment: Environment, command: list[str], found: Imported
) -> _Start | None:
    """None: it is not started by Onload, or cannot be carried over."""
    at = next((n for n, word in enumerate(command) if PurePath(word).name == STACK), None)
    if at is None:
        if _LIBRARY not in environment.get("LD_PRELOAD", ""):
            return None
        program = command[0]
    else:
        program, profiles, force = _onload_words(command[at + 1 :])
        for name in profiles:
            if name not in _PROFILES:
                found.left.append(f"{place}: the profile {name}, another file")
            known = _PROFILES.get(name, {})
            environment = {**environment, **known} if force else {**known, **environment}
    if not program or "$" in program:
        found.left.append(f"{place}: which program is meant is not said there")
        return None
    return _Start(place, PurePath(program).name, environment)


def _onload_words(words: list[str]) -> tuple[str, list[str], bool]:
    """Of what stands behind the command onload the program, the profiles, and whether these come
    before the environment.
    """
    profiles: list[str] = []
    app, force, left = "", False, iter(words)
    for word in left:
        if not word.startswith("-"):
            return app or word, profiles, force
        name, equals, value = word.partition("=")
        if name in _WITH_VALUE and not equals:
            value = next(left, "")
        if name in {"-p", "--profile"}:
            profiles += filter(None, value.split(","))
        elif name in {"-a", "--app"}:
            app = value
        force = force or name == "--force-profiles"
    return "", profiles, force


def _add(start: _Start, stacks: list[_Stack], found: Imported) -> None:
    known = {name: value for name, value in start.environment.items() if name[:3] == "EF_"}
    tcp, udp = (known.pop(name, "1") != "0" for name in ("EF_TCP", "EF_UDP"))
    if known.pop("EF_DONT_ACCELERATE", "0") != "0" or not (tcp or udp):
        found.left.append(
            f"{start.place}: {start.program or 'what'} is not accelerated unless it asks for it"
        )
        return
    comm = comm_of(start.program)
    if any(comm in one.programs for one in stacks):
        found.left.append(f"{start.place}: another start of {comm}; what the first has counts")
        return
    options = dict(_options(known, start.place, found), **({"udp": True} if udp else {}))
    routes = "" if tcp else 'proto = "udp"\n'
    for one in stacks:
        if (one.options, one.routes) == (options, routes):
            one.programs.append(comm)
            return
    stacks.append(_Stack(options, routes, [comm]))


def _options(known: Environment, place: str, found: Imported) -> dict[str, Any]:
    """The keys of a stack; what has none, or a value that none takes, is told."""
    made: dict[str, Any] = {}
    without: list[str] = []
    for name, value in sorted(known.items()):
        number = int(value) if _NUMBER.fullmatch(value) else None
        if name == "EF_INTERFACE_WHITELIST" and value.split():
            made["devices"] = value.split()
        elif name == "EF_TCP_SYNCOOKIES" and value in {"0", "1"}:
            made["syn_cookies"] = "auto" if value == "1" else "off"
        elif name in {"EF_POLL_USEC", "EF_SPIN_USEC"} and number is not None and number >= -1:
            most = MAX_BUSY_POLL_US
            made["busy_poll_us"] = min(most, number) if number >= 0 else most
            if not 0 <= number <= most:
                found.left.append(f"{place}: {name}={value}: a process polls {most} at a time")
        elif name in {"EF_TCP_SNDBUF", "EF_TCP_RCVBUF"} and number and number > 0:
            # As Linux, Onload doubles what is asked for.
            made[name[7:].lower()] = min(2 * number, MAX_BUFFER_BYTES)
        else:
            without.append(name)
    if without:
        found.left.append(f"{place}: {', '.join(without)}: a stack has no such option")
    return made


def _text(stack: _Stack, name: str) -> str:
    options = "".join(f"{key} = {json.dumps(value)}\n" for key, value in stack.options.items())
    programs = json.dumps(stack.programs, ensure_ascii=False)
    comm = "" if "" in stack.programs else f"comm = {programs}\n"
    return (
        f'\n[stacks.{name}]\nkind = "user"\n{options}'
        f'\n[[rules]]\nname = "{name}"\n{comm}table = "{name}"\n'
        f'\n[[tables.{name}.routes]]\nto = "default"\n{stack.routes}stack = "{name}"\n'
    )
