# SPDX-License-Identifier: Apache-2.0
"""What a policy may call a congestion control or a transport of user stacks, and where what it
names is looked for.

    cubic                          built in
    python:/etc/x/my_cc.py:Ledbat  a class of a Python file
    python:my_cc:Ledbat            the same, of /etc/dmm-ebpf/plugins/my_cc.py
    c:/etc/x/ledbat.so             a shared object
    c:ledbat                       the same, of /etc/dmm-ebpf/plugins/ledbat.so
    ledbat                         what an installed package offers, as an entry point of
                                   dmm_ebpf.congestion or dmm_ebpf.transport

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
TRANSPORTS = ("tcp",)
FOLDER = Path("/etc/dmm-ebpf/plugins")
PYTHON, NATIVE = "python", "c"
FORMS = (
    '"python:FILE_OR_MODULE:CLASS", "c:FILE_OR_NAME" or the name that an installed package offers'
)

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OFFERED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", re.ASCII)
_MOST_CHARS = 200
# The forms with a colon, for JSON Schema: has_form() looks at more.
PLUGIN_PATTERN = (
    rf"{PYTHON}:(?:/[^\x00]*\.py|{_WORD.pattern}):{_WORD.pattern}"
    rf"|{NATIVE}:(?:/[^\x00]*\.so|{_WORD.pattern})"
)


@dataclass(frozen=True)
class Seam:
    """Where a plug-in fits. key: of a user stack in a policy; noun: in messages; group: of entry
    points; symbol: what a shared object exports (CC_EXPORT_SYMBOL, END_EXPORT_SYMBOL).
    """

    key: str
    noun: str
    built_in: tuple[str, ...]
    group: str
    symbol: str


CONGESTION = Seam(
    "congestion", "congestion control", CONTROLS, "dmm_ebpf.congestion", "dmm_cc_export"
)
TRANSPORT = Seam("transport", "transport", TRANSPORTS, "dmm_ebpf.transport", "dmm_end_export")
SEAMS = {seam.key: seam for seam in (CONGESTION, TRANSPORT)}


@dataclass(frozen=True)
class Plugin:
    """Where a plug-in is. text: how it was named; attribute: the class, of Python; module and
    search: how a file of a package is imported, and from which folder; empty: by its path alone.
    fits: which of SEAMS.
    """

    text: str
    kind: str  # PYTHON or NATIVE
    file: str
    attribute: str = ""
    module: str = ""
    search: str = ""
    fits: str = CONGESTION.key

    @property
    def seam(self) -> Seam:
        """Where it fits."""
        return SEAMS[self.fits]

    @property
    def short(self) -> str:
        """For the listings of connections, which have room for 15 characters."""
        return self.attribute or PurePath(self.file).stem


def is_plugin(text: str, seam: Seam = CONGESTION) -> bool:
    """Whether it names anything but what is built in."""
    return text not in seam.built_in


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


def locate(text: str, folder: Path = FOLDER, seam: Seam = CONGESTION) -> Plugin:
    """Where the plug-in of that name would be; the file need not be there. Raises DmmError."""
    kind, _, rest = text.partition(":")
    if not has_form(text):
        raise DmmError(
            f"use {seam.noun} {text!r}", why="it is no name of one", hint=f"expected {FORMS}"
        )
    if kind == PYTHON and rest:
        where, _, attribute = rest.rpartition(":")
        file = where if "/" in where else str(folder / f"{where}.py")
        return Plugin(text, PYTHON, file, attribute, fits=seam.key)
    if kind == NATIVE and rest:
        file = rest if "/" in rest else str(folder / f"{rest}.so")
        return Plugin(text, NATIVE, file, fits=seam.key)
    for entry in _entries(seam, text):
        return _of_entry(entry, seam)
    raise DmmError(
        f"use {seam.noun} {text!r}",
        why=f"it is not built in, and no installed package offers it as {seam.group}",
        hint=f"built in are {', '.join(seam.built_in)}",
    )


def _entries(seam: Seam, name: str | None = None) -> list[metadata.EntryPoint]:
    from importlib import metadata  # which takes longer to import than all the rest

    found = sorted(metadata.entry_points(group=seam.group), key=lambda entry: entry.name)
    return [entry for entry in found if name in {None, entry.name}]


def _of_entry(entry: metadata.EntryPoint, seam: Seam) -> Plugin:
    """The file of an entry point, without importing anything: module:Class, or the module that
    is a shared object.
    """
    if entry.dist is None:
        raise DmmError(f"use {seam.noun} {entry.name!r}", why="its package cannot be found")
    path = PurePath(*entry.module.split("."))
    package = Path(str(entry.dist.locate_file("")))
    if entry.attr:
        file = package / path.with_suffix(".py")
        if not file.exists():
            file = package / path / "__init__.py"
        return Plugin(
            entry.name, PYTHON, str(file), entry.attr, entry.module, str(package), seam.key
        )
    files = sorted((package / path.parent).glob(f"{path.name}*.so"))
    found = files[0] if files else package / path.with_suffix(".so")
    return Plugin(entry.name, NATIVE, str(found), fits=seam.key)


def offered_names(seam: Seam = CONGESTION) -> list[str]:
    """By which installed packages offer one."""
    return [entry.name for entry in _entries(seam)]


def offers(name: str, seam: Seam = CONGESTION) -> bool:
    """Whether an installed package offers one of that name."""
    return bool(_entries(seam, name))


def offered(folder: Path = FOLDER) -> Iterator[Plugin]:
    """Every plug-in that installed packages offer, and the shared objects of the folder. What
    stands in a Python file cannot be told without running it.
    """
    for seam in SEAMS.values():
        for entry in _entries(seam):
            yield _of_entry(entry, seam)
    for file in sorted(folder.glob("*.so")):
        for seam in _exported(file) or (CONGESTION,):
            yield Plugin(f"{NATIVE}:{file.stem}", NATIVE, str(file), fits=seam.key)


def _exported(file: Path) -> list[Seam]:
    """As what a shared object can be used, by the names in it."""
    try:
        content = file.read_bytes()
    except OSError:
        return []
    return [seam for seam in SEAMS.values() if seam.symbol.encode() in content]
