# SPDX-License-Identifier: Apache-2.0
"""From what starts programs by mptcpize to a policy's text: a shell script with lines as
`mptcpize run /usr/bin/app`, or a unit of systemd as `mptcpize enable` leaves it, with
libmptcpwrap.so in LD_PRELOAD (mptcpize(8)).

Pure: no other file is looked at, and no shell is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.from_dmm import Imported
from dmm_ebpf.rd.policy.startlines import assignments, comm_of, lines

STACK = "mptcp"
_COMMAND, _LIBRARY = "mptcpize", "libmptcpwrap.so"


def import_mptcpize(text: str, source: str) -> Imported:
    """The policy that the file means. PolicyError: it says nothing of mptcpize."""
    found = Imported()
    programs = list(dict.fromkeys(_programs(text, source, found)))
    if not programs and not found.left:
        hint = "expected lines such as mptcpize run /usr/bin/app"
        why = "no program is started by mptcpize there"
        raise PolicyError(f"take {source}", why=why, hint=hint)
    found.left.append(
        f"{source}: that it was for the processes that were started so, and for what they started; "
        "the policy is for all of these names in the cgroup that it is applied to"
    )
    found.text = f"# Made of {source} by dmm-ebpf policy import\n"
    if programs:
        found.text += (
            f'\n[stacks.{STACK}]\nkind = "kernel"\nmptcp = true\n'
            f'\n[[rules]]\nname = "{STACK}"\n'
            f'comm = {json.dumps(programs, ensure_ascii=False)}\ntable = "{STACK}"\n'
            f'\n[[tables.{STACK}.routes]]\nto = "default"\nstack = "{STACK}"\n'
        )
    return found


def _programs(text: str, source: str, found: Imported) -> Iterator[str]:
    """As /proc/PID/comm has them."""
    environment: dict[str, str] = {}
    for place, words in lines(text, source, (_COMMAND, _LIBRARY), found.left):
        own, command = assignments(words)
        if not command:
            environment |= own
            continue
        program = _started(place, environment | own, command, found)
        if program and "$" not in program:
            yield comm_of(program)
        elif program is not None:
            found.left.append(f"{place}: which program is meant is not said there")


def _started(
    place: str, environment: dict[str, str], command: list[str], found: Imported
) -> str | None:
    """None: it is not started by mptcpize, or that is told already."""
    at = next((n for n, word in enumerate(command) if PurePath(word).name == _COMMAND), None)
    if at is None:
        return command[0] if _LIBRARY in environment.get("LD_PRELOAD", "") else None
    what, *behind = *command[at + 1 :], ""
    if what == "run":
        return next((word for word in behind if word != "-d"), "")
    if what == "enable":
        found.left.append(f"{place}: what the unit {behind[0]} starts; import the unit's own file")
    return None
