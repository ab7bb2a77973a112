# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house and the doors between them: which may use which, and what the files really
import and include.

The table ROOMS is the rule; DEBTS are the arrows that break it and are known. `python
tests/rooms.py` draws both into docs/develop/map-of-rooms.md and .svg; tests/unit/test_rooms.py
holds table and map against the sources.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/develop/map-of-rooms.md"
START, END = "<!-- tests/rooms.py: start -->\n", "<!-- tests/rooms.py: end -->\n"


@dataclass(frozen=True)
class Room:
    """A room: its name, what it is for, its files (globs; the first room's that fits),
    what it uses.
    """

    name: str
    job: str
    files: tuple[str, ...]
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Debt:
    """Files that use a room which they should not, and what ends that."""

    files: str
    uses: str
    why: str


CORE = "dmm_ebpf/userstack/core/"

# From the bottom up: a room uses none that stands behind it.
PYTHON = (
    Room("base", "errors, the ABI, small helpers", ("dmm_ebpf/*.py",)),
    Room("kit", "controls, transports as plug-ins", ("dmm_ebpf/kit/*.py",), ("base",)),
    Room("hal", "devices, routes, sockets, namespaces", ("dmm_ebpf/hal/*.py",), ("base",)),
    Room("loader", "BPF programs and maps", ("dmm_ebpf/loader/*.py",), ("base", "hal")),
    Room(
        "userstack",
        "a stack process, its supervisor",
        ("dmm_ebpf/userstack/*.py",),
        ("base", "kit", "hal"),
    ),
    Room(
        "prototype",
        "stack processes of one's own",
        ("dmm_ebpf/prototype/*.py",),
        ("base", "hal", "userstack"),
    ),
    Room("records", "rows and events, as maps", ("dmm_ebpf/records/*.py",), ("base",)),
    Room(
        "policy",
        "what a policy says and means",
        ("dmm_ebpf/rd/policy/*.py",),
        ("base", "kit", "records"),
    ),
    Room(
        "places",
        "containers, units, processes",
        ("dmm_ebpf/rd/places/*.py",),
        ("base", "hal", "loader"),
    ),
    Room(
        "adaptive",
        "what paths do, and which stack is best for them",
        ("dmm_ebpf/rd/adaptive/*.py",),
        ("records",),
    ),
    Room(
        "director",
        "what an instance has on the host",
        ("dmm_ebpf/rd/director/*.py", "dmm_ebpf/rd/__init__.py"),
        ("base", "kit", "hal", "loader", "userstack", "records", "policy", "adaptive"),
    ),
    Room(
        "central",
        "a fleet's policy in etcd",
        ("dmm_ebpf/central/*.py",),
        ("base", "records", "policy"),
    ),
    Room(
        "sources",
        "a policy that is no file's",
        ("dmm_ebpf/rd/sources/*.py",),
        ("base", "records", "policy", "adaptive", "director", "central"),
    ),
    Room(
        "api",
        "the director's socket",
        ("dmm_ebpf/rd/api/*.py",),
        ("base", "loader", "records", "policy", "director"),
    ),
    Room(
        "life",
        "attach, run, take over, detach",
        ("dmm_ebpf/rd/life/*.py",),
        ("base", "hal", "loader", "userstack", "policy", "director", "sources", "api"),
    ),
    Room("show", "figures in words, filters", ("dmm_ebpf/show/*.py",), ("base", "records")),
    Room("tui", "dmm-ebpf top", ("dmm_ebpf/tui/*.py",), ("base", "records", "api", "life", "show")),
    Room(
        "cli",
        "the command line",
        ("dmm_ebpf/cli/*.py",),
        (
            "base",
            "kit",
            "hal",
            "loader",
            "records",
            "policy",
            "places",
            "director",
            "central",
            "sources",
            "api",
            "life",
            "show",
            "tui",
        ),
    ),
    Room(
        "lab",
        "hosts, links, machines, the simulator",
        ("lab/*.py", "lab/*/*.py"),
        ("base", "kit", "loader", "userstack", "director", "life", "cli"),
    ),
    Room(
        "compat",
        "what tools/compat tries",
        ("compat/*.py", "compat/*/*.py"),
        ("base", "api", "lab"),
    ),
    Room(
        "bench",
        "benchmarks",
        ("bench/*.py",),
        (
            "base",
            "loader",
            "userstack",
            "policy",
            "director",
            "central",
            "sources",
            "api",
            "lab",
        ),
    ),
    Room("soak", "proof by volume", ("soak/*.py",), ("base", "kit", "hal", "lab")),
    Room("demo", "what tools/demo tells", ("demo/*.py",), ("base", "lab")),
    Room("tools", "the doors", ("tools/*",), ("lab",)),
)
C = (
    Room("abi", "what BPF, C and Python share", ("bpf/abi.h", "bpf/dmm.h")),
    Room("bpf", "the BPF programs", ("bpf/*.h", "bpf/*.c"), ("abi",)),
    Room("packet", "what is told of a packet; units", (CORE + "packet.h", CORE + "units.h")),
    Room(
        "base",
        "memory, timers, streams, api.h",
        (CORE + "api.h", CORE + "base/*.[ch]"),
        ("packet",),
    ),
    Room(
        "wire",
        "packets as bytes",
        (CORE + "wire/*.[ch]",),
        ("base",),
    ),
    Room("fec", "a code against erasures", (CORE + "fec/*.[ch]",), ("base",)),
    Room(
        "cc",
        "congestion controls",
        (CORE + "cc/*.[ch]",),
        ("base",),
    ),
    Room("udp", "datagrams, as they are", (CORE + "udp/*.[ch]",), ("base",)),
    Room("end", "what a transport is", (CORE + "end.h", CORE + "end_export.h"), ("base", "wire")),
    Room(
        "guard",
        "somebody else's transport, checked",
        (CORE + "guard/*.[ch]",),
        ("base", "wire", "end"),
    ),
    Room(
        "kit",
        "plug-ins, the simulator of controls",
        ("dmm_ebpf/kit/*.[ch]", "dmm_ebpf/kit/sim/*.[ch]"),
        ("packet", "base", "wire", "cc", "end", "guard"),
    ),
    Room("tcp", "a transport", (CORE + "tcp/*.[ch]",), ("base", "wire", "fec", "cc", "end")),
    Room(
        "relay",
        "two ends, and who calls them",
        (CORE + "relay/*.[ch]",),
        ("base", "wire", "cc", "udp", "end", "tcp"),
    ),
    Room("hal", "AF_XDP, TAP devices, rights", ("dmm_ebpf/hal/*.[ch]",), ("abi", "packet")),
    Room(
        "engine",
        "core and devices joined",
        ("dmm_ebpf/userstack/*.[ch]",),
        ("abi", "packet", "base", "hal"),
    ),
    Room("loader", "libbpf for Python", ("dmm_ebpf/loader/*.[ch]",)),
    Room("policy", "a million routes", ("dmm_ebpf/rd/policy/*.[ch]",), ("abi",)),
)
LANGUAGES = {"Python": PYTHON, "C": C}

DEBTS: tuple[Debt, ...] = ()


@dataclass(frozen=True)
class Arrow:
    """file, of room, uses target, of room uses."""

    file: str
    room: str
    target: str
    uses: str


@cache
def tracked() -> dict[str, None]:
    """Every file of the repository, as a path from its root; also new ones that are not
    ignored. In order.
    """
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: None for name in sorted(said.splitlines()) if (ROOT / name).is_file()}


def sources(language: str) -> list[str]:
    """The files that the table of language has to know."""
    if language == "C":
        return [f for f in tracked() if re.match(r"(bpf|dmm_ebpf)/(?!compat/).*\.[ch]$", f)]
    return [
        f
        for f in tracked()
        if re.match(r"(dmm_ebpf|lab|bench|soak|compat|demo|tools)/", f) and _is_python(f)
    ]


def _is_python(name: str) -> bool:
    if name.endswith(".py"):
        return True
    with (ROOT / name).open("rb") as file:
        first = file.readline()
    return first.startswith(b"#!") and b"python" in first


@cache
def room_of(language: str, file: str) -> str | None:
    """The name of file's room: "tests" for what is in tests/, None if no room has it."""
    if file.startswith("tests/"):
        return "tests"
    for room in LANGUAGES[language]:
        if any(PurePath(file).match(pattern) for pattern in room.files):
            return room.name
    return None


@cache
def arrows(language: str) -> list[Arrow]:
    """What the files of language use of other rooms."""
    targets = _included if language == "C" else _imported
    found = []
    for file in sources(language):
        room = room_of(language, file) or ""
        for target in sorted(set(targets(file))):
            uses = room_of(language, target) or ""
            if uses != room:
                found.append(Arrow(file, room, target, uses))
    return found


def debt_of(arrow: Arrow) -> Debt | None:
    for debt in DEBTS:
        if PurePath(arrow.file).match(debt.files) and arrow.uses == debt.uses:
            return debt
    return None


def included_names(file: str) -> list[str]:
    """What file includes in quotes, as it says it."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def _included(file: str) -> Iterator[str]:
    for name in included_names(file):
        yield os.path.normpath(PurePath(file).parent / name)


_DEFINITION = re.compile(r"^(?:const )?(?:struct |enum )?\w+ \**(\w+)\([^;{}]*\)\n\{", re.MULTILINE)
_STATIC = re.compile(r"^static .*?(\w+)\([^;{}]*\)\n\{", re.MULTILINE)
_NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


@cache
def code_of(file: str) -> str:
    """A C file without comments and strings."""
    return _NOT_CODE.sub(" ", (ROOT / file).read_text(encoding="utf-8"))


@cache
def shown_by(file: str) -> frozenset[str]:
    """The functions of a C file that others may call."""
    return frozenset(_DEFINITION.findall(code_of(file)))


@cache
def functions() -> dict[str, str]:
    """Every function that a C file shows to others, and that file."""
    return {
        name: file
        for file in sources("C")
        if file.startswith("dmm_ebpf/") and file.endswith(".c")
        for name in shown_by(file)
    }


@cache
def kept_by(file: str) -> frozenset[str]:
    """The functions that file keeps to itself."""
    return frozenset(_STATIC.findall(code_of(file)))


def named() -> list[Arrow]:
    """Which C files name functions of other rooms, so that they may call them. Those of
    api.h are anybody's.
    """
    door = re.findall(r"\b(\w+)\(", code_of(CORE + "api.h"))
    shown = {name: file for name, file in functions().items() if name not in door}
    found = []
    for file in sources("C"):
        room = room_of("C", file) or ""
        words = set(re.findall(r"\b\w+\b", code_of(file))) - kept_by(file)
        for target in sorted({shown[word] for word in words & shown.keys()}):
            uses = room_of("C", target) or ""
            if uses != room and file.endswith(".c"):
                found.append(Arrow(file, room, target, uses))
    return found


def _imported(file: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (target for target in map(_module_file, names) if target)


@cache
def _module_file(name: str) -> str | None:
    """The file of module name, or of what it is a part of: a name in a module, or a compiled
    one in a package.
    """
    parts = name.split(".")
    while parts:
        for top in ("", "tests/"):
            for ending in (".py", "/__init__.py"):
                path = top + "/".join(parts) + ending
                if path in tracked():
                    return path
        parts.pop()
    return None


def ranks(rooms: tuple[Room, ...]) -> dict[str, int]:
    """How high each room stands: one above the highest that it uses."""
    high: dict[str, int] = {}
    for room in rooms:
        high[room.name] = max((high[name] + 1 for name in room.uses), default=0)
    return high


def drawn(rooms: tuple[Room, ...]) -> dict[str, list[str]]:
    """The arrows of the picture: without those that a way over another room says, too."""
    below: dict[str, set[str]] = {}
    for room in rooms:
        below[room.name] = set(room.uses).union(*(below[name] for name in room.uses))
    return {
        room.name: [
            name for name in room.uses if not any(name in below[other] for other in room.uses)
        ]
        for room in rooms
    }


BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 200, 46, 24, 54, 16


def picture(rooms: tuple[Room, ...]) -> str:
    """The rooms as SVG, the lowest at the bottom, an arrow from each to those that it uses."""
    high, leads = ranks(rooms), drawn(rooms)
    top = max(high.values())
    place = {}
    for rank in range(top + 1):
        for column, name in enumerate(r.name for r in rooms if high[r.name] == rank):
            place[name] = (
                MARGIN + column * (BOX_W + GAP_X),
                MARGIN + (top - rank) * (BOX_H + GAP_Y),
            )
    width = max(x for x, _ in place.values()) + BOX_W + MARGIN
    height = max(y for _, y in place.values()) + BOX_H + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#567"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for room in rooms:
        x, y = place[room.name]
        for number, name in enumerate(leads[room.name], 1):
            end_x, end_y = place[name]
            start = x + BOX_W * number // (len(leads[room.name]) + 1)
            lines.append(
                f'<path d="M{start} {y + BOX_H}L{end_x + BOX_W // 2} {end_y}" stroke="#567" marker-end="url(#a)"/>'
            )
    for room in rooms:
        x, y = place[room.name]
        lines += [
            f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="6" fill="#eef3f8" stroke="#567"/>',
            f'<text x="{x + 10}" y="{y + 19}" font-size="14" font-weight="bold">{room.name}</text>',
            f'<text x="{x + 10}" y="{y + 37}" font-size="11">{room.job}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def picture_file(language: str) -> Path:
    return PAGE.with_name(f"rooms-{language.lower()}.svg")


def tables() -> str:
    """What stands between the marks of the page."""
    lines = []
    for language, rooms in LANGUAGES.items():
        lines += [
            f"## {language}\n",
            f"![The rooms of {language}]({picture_file(language).name})\n",
            "| room | what it is for | files | may use |",
            "|---|---|---|---|",
        ]
        for room in rooms:
            files = ", ".join(f"`{name}`" for name in room.files)
            lines.append(
                f"| {room.name} | {room.job} | {files} | {', '.join(room.uses) or 'none'} |"
            )
        lines.append("")
    if DEBTS:
        lines += ["## Known debts\n", "| files | use | why it is so |", "|---|---|---|"]
        lines += [f"| `{debt.files}` | {debt.uses} | {debt.why} |" for debt in DEBTS]
    return "\n".join(lines).rstrip("\n") + "\n"


def draw() -> None:
    """Write pictures and tables into the page."""
    for language, rooms in LANGUAGES.items():
        picture_file(language).write_text(picture(rooms), encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(before + START + tables() + END + after, encoding="utf-8")


if __name__ == "__main__":
    draw()
