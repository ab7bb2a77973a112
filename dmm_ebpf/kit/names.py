# SPDX-License-Identifier: Apache-2.0
"""What a policy may call a congestion control of user stacks, and where what it names
is looked for.

    cubic                          built in
    python:/etc/x/my_cc.py:Ledbat  a class of a Python file
    python:my_cc:Ledbat            the same, of /etc/dmm-ebpf/plugins/my_cc.py
    c:/etc/x/ledbat.so             a shared object
    c:ledbat                       the same, of /etc/dmm-ebpf/plugins/ledbat.so
    ledbat what an installed package offers as an entry point of dmm_ebpf.congestion

Nothing is loaded here, and nothing of the current directory is ever looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    from importlib import metadata

CONTROLS = ("cubic", "wan", "bbr", "reno")
FOLDER = Path("/etc/dmm-ebpf/plugins")
GROUP = "dmm_ebpf.congestion"
PYTHON, NATIVE = "python", "c"
FORMS = (
    '"python:FILE_OR_MODULE:CLASS", "c:FILE_OR_NAME" or the name that an installed package offers'
)

_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OFFERED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", re.ASCII)
_MOST_CHARS = 200


@dataclass(frozen=True)
class Plugin:
    """Where a plug-in is. text: how it was named; attribute: the class, of Python; module and
    search: how a file of a package is imported, and from which folder; empty: by its path alone.
    """

    text: str
    kind: str  # PYTHON or NATIVE
    file: str
    attribute: str = ""
    module: str = ""
    search: str = ""

    @property
    def short(self) -> str:
        """For the listings of connections, which have room for 15 characters."""
        return self.attribute or PurePath(self.file).stem


def is_plugin(text: str) -> bool:
    """Whether it names anything but a built-in control."""
    return text not in CONTROLS


def has_form(text: str) -> bool:
    """Whether it is written as the name of a plug-in, there or not."""
    if len(text) > _MOST_CHARS or not text.isprintable():
        return False
    kind, _, rest = text.partition(":")
    if kind == PYTHON and rest:
        where, _, attribute = rest.rpartition(":")
        return bool(_WORD.fullmatch(attribute)) and _is_place(where, ".py")
    if kind == NATIVE and rest:
        return _is_place(rest, ".so")
    return bool(_OFFERED.fullmatch(text))


def _is_place(where: str, suffix: str) -> bool:
    if "/" in where:
        return (
            where.startswith("/") and where.endswith(suffix) and ".." not in PurePath(where).parts
        )
    return bool(_WORD.fullmatch(where))


def locate(text: str, folder: Path = FOLDER) -> Plugin:
    """Where the plug-in of that name would be; the file need not be there. Raises DmmError."""
    kind, _, rest = text.partition(":")
    if not has_form(text):
        raise DmmError(
            f"use congestion control {text!r}", why="it is no name of one", hint=f"expected {FORMS}"
        )
    if kind == PYTHON and rest:
        where, _, attribute = rest.rpartition(":")
        return Plugin(
            text, PYTHON, where if "/" in where else str(folder / f"{where}.py"), attribute
        )
    if kind == NATIVE and rest:
        return Plugin(text, NATIVE, rest if "/" in rest else str(folder / f"{rest}.so"))
    for entry in _entries(text):
        return _of_entry(entry)
    raise DmmError(
        f"use congestion control {text!r}",
        why=f"it is not built in, and no installed package offers it as {GROUP}",
        hint=f"built in are {', '.join(CONTROLS)}",
    )


def _entries(name: str | None = None) -> list[metadata.EntryPoint]:
    from importlib import metadata  # which takes longer to import than all the rest

    found = sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    return [entry for entry in found if name in {None, entry.name}]


def _of_entry(entry: metadata.EntryPoint) -> Plugin:
    """The file of an entry point, without importing anything: module:Class, or the module that
    is a shared object.
    """
    if entry.dist is None:
        raise DmmError(f"use congestion control {entry.name!r}", why="its package cannot be found")
    path = PurePath(*entry.module.split("."))
    package = Path(str(entry.dist.locate_file("")))
    if entry.attr:
        file = package / path.with_suffix(".py")
        if not file.exists():
            file = package / path / "__init__.py"
        return Plugin(entry.name, PYTHON, str(file), entry.attr, entry.module, str(package))
    files = sorted((package / path.parent).glob(f"{path.name}*.so"))
    return Plugin(entry.name, NATIVE, str(files[0] if files else package / path.with_suffix(".so")))


def offers(name: str) -> bool:
    """Whether an installed package offers a control of that name."""
    return bool(_entries(name))


def offered(folder: Path = FOLDER) -> Iterator[Plugin]:
    """Every plug-in that installed packages offer, and the shared objects of the folder. What
    stands in a Python file cannot be told without running it.
    """
    for entry in _entries():
        yield _of_entry(entry)
    for file in sorted(folder.glob("*.so")):
        yield Plugin(f"{NATIVE}:{file.stem}", NATIVE, str(file))
