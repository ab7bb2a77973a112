# SPDX-License-Identifier: Apache-2.0
"""inotify(7), as far as it takes to learn at once that named entries of directories
came or went.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

from dmm_ebpf.closing import Closing

_CREATE, _DELETE, _MOVED = 0x100, 0x200, 0x40 | 0x80  # the latter: from there, and to there
_OVERFLOW, _IGNORED, _ONLYDIR = 0x4000, 0x8000, 0x1000000
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len
_READ_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class EntryWatch(Closing):
    """Watches directories for entries that somebody makes, removes or renames. fileno() is readable
    when there is news.
    """

    def __init__(self) -> None:
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "inotify")
        self._names: dict[int, Collection[bytes]] = {}

    def fileno(self) -> int:
        return self._fd

    def follow(self, wanted: Mapping[Path, Collection[bytes]]) -> None:
        """From now on, entries of these names in these directories, and no others. A directory that
        is not there is
        passed over: whoever waits for it follows its parent, and gives parents first. OSError:
        no more watches.
        """
        names: dict[int, Collection[bytes]] = {}
        for folder, entries in wanted.items():
            flags = ctypes.c_uint32(_CREATE | _DELETE | _MOVED | _ONLYDIR)
            number = _libc.inotify_add_watch(self._fd, os.fsencode(folder), flags)
            if number >= 0:
                names[number] = entries
            elif not (error := ctypes.get_errno()) or folder.is_dir():
                raise OSError(error, os.strerror(error), str(folder))
        for number in self._names.keys() - names.keys():
            _libc.inotify_rm_watch(self._fd, number)  # one whose directory is gone is off already
        self._names = names

    def drain(self) -> bool:
        """Read all news; whether any is of what is followed."""
        told = False
        while data := self._read():
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                told |= bool(mask & (_OVERFLOW | _IGNORED)) or name in self._names.get(number, ())
        return told

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
