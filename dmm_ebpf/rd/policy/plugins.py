# SPDX-License-Identifier: Apache-2.0
"""Whether the congestion controls and transports that a policy names as plug-ins, and the programs
that it names as stack processes, can be had on this host.

A plug-in is loaded once, in a process of its own (kit/probe.py): to find out is
to run it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dmm_ebpf.errors import DmmError, PolicyError, PrivilegeError
from dmm_ebpf.kit import probe
from dmm_ebpf.kit.names import SEAMS, Seam, is_plugin
from dmm_ebpf.owned import check_owner, real_path
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import Policy


def check_plugins(policy: Policy, stacks: Iterable[str]) -> list[str]:
    """Raises PolicyError for one that cannot be loaded. Returns, in sentences, which ones this user
    may not read.

    stacks: names of user stacks.
    """
    unread = []
    configs = policy.user_stacks()
    for name in stacks:
        config = configs[name]
        _check_command(policy, name, config.command)
        for seam in SEAMS.values():
            unread += _check_plugin(policy, name, seam, config.part(seam))
    return unread


def _check_plugin(policy: Policy, name: str, seam: Seam, text: str) -> list[str]:
    if not is_plugin(text, seam):
        return []
    try:
        probe.check(text, seam)
    except PrivilegeError as error:
        return [str(error)]
    except DmmError as error:
        path = ("stacks", name, seam.key)
        why = f"{describe(path)}: {error}"
        raise PolicyError(f"accept {policy.place(*path)}", why=why) from error
    return []


def _check_command(policy: Policy, name: str, command: Sequence[str]) -> None:
    """Raises PolicyError unless its program can be run, and it and every file that it
    names are root's.
    """
    path = ("stacks", name, "command")

    def refusal(why: str, hint: str) -> PolicyError:
        return PolicyError(
            f"accept {policy.place(*path)}", why=f"{describe(path)}: {why}", hint=hint
        )

    for number, word in enumerate(command):
        file = Path(word)
        try:
            found = real_path(file)
            is_file = found.is_file()
        except OSError as error:
            if number == 0:
                raise refusal(
                    f"{word}: {os.strerror(error.errno or 0)}", "name a program that is there"
                ) from error
            continue
        if number == 0 and not (is_file and os.access(found, os.X_OK)):
            raise refusal(f"{word} is no program", "name a file that may be executed")
        if word.startswith("/") and is_file:
            check_owner(file, refusal)
