# SPDX-License-Identifier: Apache-2.0
"""The program of bpf/group.h at the tracepoint cgroup_mkdir, and what it is told: which cgroups are
waited for, and what has to know their ids.

It runs within mkdir(2), so an id is where it has to be before anybody can be in the cgroup. Its
pinned link is all that is kept of it. A director that takes an instance over puts a program of its
own in the place of the one that it finds. Paths are compared whole, as the kernel has them, from
the root of the hierarchy; so in a container, which does not see that root, nothing is waited for.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError, KernelFeatureError
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import bpf, cgroup, explain, link, pinnedlink, programs
from dmm_ebpf.loader.attach import Attached
from dmm_ebpf.loader.bpf import ProgType
from dmm_ebpf.loader.compile import code, knows_groups
from dmm_ebpf.loader.spec import GROUP_MADE, WAITED_KEY

TRACEPOINT = "cgroup_mkdir"
_WHAT = "have the kernel say that a cgroup is made"
_RETURN_0 = link.INSN.pack(0xB7, 0, 0, 0) + link.INSN.pack(0x95, 0, 0, 0)
_WORDS, _BITS = 4, 64  # of a half in struct dmm_waited


def key_of(place: Path, root: Path) -> bytes | None:
    """The path of a cgroup's directory, below the hierarchy's root, as waited[] has it; None: it is
    too long.
    """
    path = b"/" + os.fsencode(place.relative_to(root))
    return path.ljust(C.DMM_WAITED_PATH, b"\0") if len(path) < C.DMM_WAITED_PATH else None


def bits(indices: Sequence[int]) -> list[int]:
    """Words in which the bits of these rules of a half are set."""
    words = [0] * _WORDS
    for index in indices:
        words[index // _BITS] |= 1 << index % _BITS
    return words


def why_not() -> str | Unknown:
    """Why the kernel does not tell of cgroups here, as the rest of "no: ..."; empty: it does."""
    try:
        why = _lacks()
    except DmmError as error:
        return Unknown(error.why)
    if why:
        return why
    try:
        fd = bpf.prog_load("dmm_probe", ProgType.RAW_TRACEPOINT, _RETURN_0)
        try:
            os.close(bpf.tracepoint(TRACEPOINT, fd))
        finally:
            os.close(fd)
    except OSError as error:
        refused = explain.refused(_WHAT, error)
        return Unknown(refused.why) if error.errno == errno.EPERM else refused.why
    return ""


def _lacks() -> str:
    if not knows_groups():
        return "this kernel does not say where it has a cgroup (CONFIG_DEBUG_INFO_BTF)"
    if not cgroup.sees_root():
        return "the root of the cgroup hierarchy cannot be seen from here"
    return ""


class Waited:
    """What waited[] of one instance says. Only who holds the instance makes one."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self.there = False  # whether the kernel tells
        self._putting = threading.Lock()

    def put(self) -> None:
        """Have the kernel tell from now on; if it does already, nothing changes. DmmError: it
        cannot be.
        """
        with self._putting:
            if not self.there:
                self._put()

    def _put(self) -> None:
        why = _lacks()
        if why:
            raise KernelFeatureError(_WHAT, why=why)
        fd, _ = programs.load_group_made(code(), self._attached.maps)
        pinnedlink.put(self._attached, GROUP_MADE, fd, partial(bpf.tracepoint, TRACEPOINT), _WHAT)
        self.there = True

    def own(self, place: Path) -> None:
        """The directory of the instance's own cgroup."""
        key = self._key(place)
        if key is not None:
            entry = self._attached.maps.waited.get(key) or abi.new("dmm_waited")
            entry.own = 1
            self._attached.maps.waited[key] = entry

    def rules(self, half: int, wanted: Mapping[Path, Sequence[int]]) -> None:
        """Which rules of that half, by their index, each of these directories is for; from now on
        no others there. DmmError: there is no room.
        """
        table = self._attached.maps.waited
        asked = {self._key(place): bits(indices) for place, indices in wanted.items()}
        for key, entry in list(table.items()):
            words = asked.pop(key, [0] * _WORDS)
            _set(entry, half, words)
            if entry.own or any(entry.rules):
                table[key] = entry
            else:
                table.delete(key)
        for key, words in asked.items():
            if key is not None:
                entry = abi.new("dmm_waited")
                _set(entry, half, words)
                table[key] = entry

    def _key(self, place: Path) -> object | None:
        path = key_of(place, cgroup.find_cgroup2())
        return None if path is None else WAITED_KEY.type(path)


def _set(entry: abi.Struct, half: int, words: Sequence[int]) -> None:
    for number, word in enumerate(words):
        entry.rules[half * _WORDS + number] = word


def set_rule(attached: Attached, index: int, rule: abi.Struct, was: int) -> None:
    """Have what the names of a rule in force stand for be what rule says; its cgroup only if that
    is still the one of id was. index: in rules[].
    """
    _run(
        attached,
        rule=index,
        device=rule.device,
        exe_device=rule.exe_device,
        exe_inode=rule.exe_inode,
        cgroup_was=was,
        cgroup_id=rule.cgroup_id,
    )


def set_own(attached: Attached, was: int, number: int) -> None:
    """Have the instance's own cgroup be the one with that id, if it is still the one of id was."""
    _run(attached, rule=C.DMM_OWN_GROUP, cgroup_was=was, cgroup_id=number)


def _run(attached: Attached, **asked: int) -> None:
    context = abi.pack(abi.new("dmm_rule_set", **asked))
    try:
        bpf.prog_test(attached.progs["dmm_rule_set"], None, context=context)
    except OSError as error:
        raise DmmError("write a rule in force", why=str(error.strerror)) from error
