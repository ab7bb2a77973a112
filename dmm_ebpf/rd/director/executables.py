# SPDX-License-Identifier: Apache-2.0
"""The executable files that rules name by a path of this host's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dmm_ebpf.errors import KernelFeatureError, UsageError
from dmm_ebpf.hal import exefile
from dmm_ebpf.loader.compile import reads_executables
from dmm_ebpf.rd.policy.compile import NO_FILE
from dmm_ebpf.rd.policy.evaluate import Query
from dmm_ebpf.rd.policy.model import Policy


def find(path: str) -> tuple[int, int]:
    """Device and inode number of the file that is there now, as struct dmm_rule has them, or
    NO_FILE.
    """
    return exefile.identify(path) or NO_FILE


def lookup(path: str) -> tuple[int, int]:
    """find(), for compile_policy(). KernelFeatureError: the programs could not tell who executes
    it.
    """
    if not reads_executables():
        raise KernelFeatureError(
            "look at what a process executes",
            why="that takes a kernel with BTF, and BCC to compile for it",
        )
    return find(path)


def named(policy: Policy) -> Iterator[str]:
    """The paths that rules of the policy name, each once."""
    yield from dict.fromkeys(path for rule in policy.rules for path in rule.every("executable"))


def by_file(policy: Policy, query: Query) -> Query:
    """With all the paths that the policy has for the very file that is asked about. UsageError: it
    does not exist, and no rule waits for it.
    """
    path = query.executable
    if path is None:
        return query
    if _is_missing(path) and path not in named(policy):
        why = f"there is no file {path}, and no rule waits for it"
        raise UsageError("ask for a route", why=why)
    asked = exefile.identify(path)
    same = (one for one in named(policy) if asked and exefile.identify(one) == asked)
    return replace(query, same_files=tuple(same))


def _is_missing(path: str) -> bool:
    """Not so of what a process still executes, as /proc names it."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return not path.endswith(" (deleted)")
    except OSError:
        pass
    return False
