# SPDX-License-Identifier: Apache-2.0
"""What is kept from one start to the next, so that the next needs no compiler:
/var/cache/dmm-ebpf, root's alone.

What is read here goes into the kernel, so it is trusted only as far as it proves itself: the folder
and the file are root's, nobody else may write to them, neither is a symbolic link, and the file
holds the digest of its content and the whole key it was made for. What is refused is said once in
the log and made anew. Files are replaced by rename(2), never edited; when there are more than
MAX_ENTRIES the ones longest unused go. That nothing can be written is no error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER = Path("/var/cache/dmm-ebpf")
MAX_ENTRIES = 48
MAX_ENTRY_BYTES = 1 << 20

_MAGIC = b"dmm-ebpf cache 1\n"
_DIGEST_BYTES = 64  # of SHA-256, as hexadecimal text
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PART = ".part"

log = logging.getLogger("dmm-ebpf")
_said: set[str] = set()


class _RefusedError(Exception):
    """Something stands there that is not to be trusted; the argument says why, with its path."""


def read(kind: str, key: Mapping[str, Any]) -> Any:
    """What write() kept for this kind and key, or None."""
    name = _name(kind, key)
    try:
        with _folder() as folder:
            value = _value(_content(folder, name), key, name)
    except FileNotFoundError:
        return None
    except _RefusedError as refused:
        _say_once(f"{refused}; it is not used, and what it holds is made anew")
        return None
    except OSError as error:
        _say_once(
            f"{FOLDER / name} cannot be read ({error.strerror}), and what it holds is made anew"
        )
        return None
    return value


def write(kind: str, key: Mapping[str, Any], value: Any) -> bool:
    """Keeps value, anything that JSON can hold; False if that was not possible."""
    name = _name(kind, key)
    body = json.dumps({"key": dict(key), "value": value}).encode()
    data = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    try:
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _folder() as folder:
            _replace(folder, name, data)
            _forget_old(folder)
    except (OSError, _RefusedError) as error:
        log.info("%s is not kept: %s", name, error)
        return False
    return True


def _name(kind: str, key: Mapping[str, Any]) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}"


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        log.warning("%s", sentence)


def _check(found: os.stat_result, path: Path) -> None:
    if found.st_uid != 0:
        raise _RefusedError(f"{path} belongs to uid {found.st_uid}, not to root")
    if found.st_mode & _OTHERS_WRITE:
        raise _RefusedError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so others may write to it"
        )


@contextmanager
def _folder() -> Iterator[int]:
    """An fd of FOLDER."""
    try:
        fd = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _RefusedError(f"{FOLDER} is not a directory") from error
        raise
    try:
        _check(os.fstat(fd), FOLDER)
        yield fd
    finally:
        os.close(fd)


def _content(folder: int, name: str) -> bytes:
    path = FOLDER / name
    try:
        # O_NONBLOCK: a FIFO that somebody put there must not hold us up.
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _RefusedError(f"{path} is a symbolic link") from error
        raise
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _RefusedError(f"{path} is not a regular file")
        _check(found, path)
        data = file.read(MAX_ENTRY_BYTES + 1)
        with suppress(OSError):
            os.utime(fd)  # it was used
    return data


def _value(data: bytes, key: Mapping[str, Any], name: str) -> Any:
    at = len(_MAGIC) + _DIGEST_BYTES + 1
    body = data[at:]
    digest = data[len(_MAGIC) : at - 1]
    if not data.startswith(_MAGIC) or digest != hashlib.sha256(body).hexdigest().encode():
        raise _RefusedError(f"{FOLDER / name} is damaged")
    kept = json.loads(body)
    if not isinstance(kept, dict) or kept.get("key") != json.loads(json.dumps(key)):
        raise _RefusedError(f"{FOLDER / name} was made for something else")
    return kept.get("value")


def _replace(folder: int, name: str, data: bytes) -> None:
    part = f"{name}.{os.getpid()}{_PART}"
    with suppress(FileNotFoundError):
        os.unlink(part, dir_fd=folder)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


def _forget_old(folder: int) -> None:
    """Leaves MAX_ENTRIES files, those used last. What a writer that was killed left behind
    grows old like any other.
    """
    used = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # another writer's, which it has just renamed
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                used.append((found.st_mtime_ns, name))
    for _, name in sorted(used, reverse=True)[MAX_ENTRIES:]:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
