# SPDX-License-Identifier: Apache-2.0
"""The congestion controls and transports of a stack process that are plug-ins: those that it was
started with, and those that it is given while it runs.

A process that serves can open no file and map no code. So a Python plug-in comes as its text, from
the director, which has checked the file, and is computed by a thread that was made ahead; a shared
object can be had only by a process that starts. Connections keep what they opened with: a plug-in
is let go when none has it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dmm_ebpf.errors import ConflictError
from dmm_ebpf.kit import guarding, load
from dmm_ebpf.kit.bridge import Guarded
from dmm_ebpf.kit.names import PYTHON, SEAMS, Plugin, Seam
from dmm_ebpf.kit.workers import Workers
from dmm_ebpf.userstack import answers
from dmm_ebpf.userstack._core import ffi, lib

SPARE = 3  # plug-ins that a process can be given besides, as long as connections have them
MAX_SOURCE_CHARS = 1 << 20


class Plugins:
    """All of one process. Lives in the event loop's thread."""

    def __init__(self, first: Iterable[Plugin]) -> None:
        """first: what the process starts with. Raises DmmError."""
        self._all: list[Guarded] = [guarding.guarded(one, ffi, lib) for one in first]
        self._source = ""  # as much as has come of the next one
        self._workers: Workers | None = None
        # what new connections get, by the key of where it fits
        self.current = dict.fromkeys(SEAMS, "")

    def start(self) -> None:
        """Makes all threads, also of those to come."""
        for plugin in self._all:
            plugin.start()
        self._workers = Workers(SPARE)

    def named(self, seam: Seam, name: str) -> Guarded | None:
        """The plug-in that was loaded last by that name."""
        found = [p for p in self._all if p.plugin.seam is seam and p.plugin.text == name]
        return found[-1] if found else None

    def take(self, plugin: Plugin, piece: str, *, more: bool) -> None:
        """The next piece of a plug-in's text; with the last one it is loaded. Raises DmmError for
        what cannot be.
        """
        if plugin.kind != PYTHON:
            if self.named(plugin.seam, plugin.text) is None:
                raise ConflictError(
                    f"use {plugin.seam.noun} {plugin.text!r}",
                    why="the stack runs, and a process that runs can load no shared object",
                    hint="give the stack that is to have it another name",
                )
            return
        source, self._source = self._source + piece, ""
        if len(source) > MAX_SOURCE_CHARS:
            raise load.plugin_error(plugin, f"it is longer than {MAX_SOURCE_CHARS} characters")
        if more:
            self._source = source
        else:
            self._load(plugin, source)

    def _load(self, plugin: Plugin, source: str) -> None:
        self._let_go()
        bridge = guarding.asked(plugin, load.class_of_source(plugin, source), ffi, lib)
        if self._workers is None or not self._workers.run(bridge.work):
            raise ConflictError(
                f"use {plugin.seam.noun} {plugin.text!r}",
                why=f"connections still have {SPARE} that the stack was given before",
                hint="wait until they have ended, or give the stack that is to have it another name",
            )
        self._all.append(bridge)

    def _let_go(self) -> None:
        """Those that nobody has, and no new connection will get."""
        gone = [p for p in self._all if p.plugin.text != self.current[p.plugin.fits] and p.may_go()]
        for plugin in gone:
            plugin.close()
            self._all.remove(plugin)

    def each(self, what: Callable[[Guarded], None]) -> None:
        """what of every plug-in that there is."""
        for plugin in self._all:
            what(plugin)

    def told(self) -> dict[str, int | str]:
        """Figures of all that fit in one place together, and the first fault of the one that was
        loaded last and had one; nothing for a place where no plug-in is.
        """
        told: dict[str, int | str] = {}
        for seam in SEAMS.values():
            faults = [plugin.faults() for plugin in self._all if plugin.plugin.seam is seam]
            if faults:
                first = next((f.sentence for f in reversed(faults) if f.sentence), "")
                figures = sum(f.faults for f in faults), sum(f.fallen for f in faults), first
                told |= dict(zip(answers.plugin_keys(seam.key), figures, strict=True))
        return told

    def close(self) -> None:
        """When no connection has any."""
        self.each(lambda plugin: plugin.close())
