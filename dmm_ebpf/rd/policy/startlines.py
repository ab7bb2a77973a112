# SPDX-License-Identifier: Apache-2.0
"""The lines by which programs are started, of a shell script or a unit of systemd, for who imports
a policy from them. Pure: no shell is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath

from dmm_ebpf.abi import C

_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
# Of a unit (systemd.exec(5), systemd.service(5)) what is no such line starts nothing that stays.
_SECTION = re.compile(r"\[[A-Za-z-]+\]")
_OF_A_UNIT = re.compile(r"Environment=|ExecStart=[-@:+!|]*")


def lines(
    text: str, source: str, words: tuple[str, ...], left: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Each line's place and words, comments left out; lines that go on in the next are one. left:
    is told of those that cannot be read and have one of words in them.
    """
    for place, line in _whole(text, source):
        try:
            yield place, shlex.split(line, comments=True)
        except ValueError as error:
            if any(word in line for word in words):
                left.append(f"{place}: it cannot be read ({str(error).lower()})")


def _whole(text: str, source: str) -> Iterator[tuple[str, str]]:
    written = text.splitlines()
    is_unit = any(_SECTION.fullmatch(line.strip()) for line in written)
    whole, first = "", 0
    for number, line in enumerate(written, 1):
        first = first or number
        whole += line.removesuffix("\\")
        if line.endswith("\\"):
            whole += " "
            continue
        key = _OF_A_UNIT.match(whole.strip())
        if key or not is_unit:
            yield f"{source}:{first}", whole.strip()[key.end() if key else 0 :]
        whole, first = "", 0


def assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """What is set before a command, and the command."""
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        match = _ASSIGNED.fullmatch(word)
        if match:
            found[match[1]] = match[2]
        elif word not in {"export", "env", "exec"}:
            return found, words[number:]
    return found, []


def comm_of(program: str) -> str:
    """What a program is called in /proc/PID/comm when it is started by that name."""
    return PurePath(program).name.encode()[: C.DMM_COMM_LEN - 1].decode(errors="ignore")
