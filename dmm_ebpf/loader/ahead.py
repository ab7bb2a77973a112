# SPDX-License-Identifier: Apache-2.0
"""Maps made and programs loaded, if wanted before anybody asks: in the kernel, while the
interpreter still imports.

Nothing of the host changes by it: what is loaded and not attached goes with its fds, and those
with the process.
"""

from __future__ import annotations

import os
import threading

from dmm_ebpf.loader import programs
from dmm_ebpf.loader.compile import code
from dmm_ebpf.loader.spec import Maps

Loaded = tuple[Maps, dict[str, int]]  # fds of programs by name

_begun: list[_Loading] = []


class _Loading:
    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._error: BaseException | None = None
        # A daemon: an error elsewhere ends the process, and it need not wait for this.
        self._thread = threading.Thread(target=self._work, name="dmm-ahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._loaded = _load()
        except BaseException as error:
            self._error = error

    def result(self) -> Loaded:
        self._thread.join()
        if self._loaded is None:
            raise self._error or RuntimeError("loading ended without a word")
        return self._loaded


def begin() -> None:
    """Loads in a thread from now on, for the next take(); a process that forks must
    not. Root's alone.
    """
    if os.geteuid() == 0 and not _begun:
        _begun.append(_Loading())


def take() -> Loaded:
    """Every map of spec.MAPS, empty, and every program of spec.PROGRAMS; the caller's to close."""
    return _begun.pop().result() if _begun else _load()


def _load() -> Loaded:
    compiled = code()
    opened = programs.create_maps()
    try:
        return opened, programs.load_programs(compiled, opened)
    except BaseException:
        programs.close_maps(opened)
        raise
