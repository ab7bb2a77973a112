# SPDX-License-Identifier: Apache-2.0
"""How often the walk of a segment through the core leads from a room up to a higher one,
counted by callgrind.

`python tests/walk.py` runs the simulator under valgrind and prints, for each case: calls inside the
core, those between rooms, those of them that lead up, packets, and instructions inside the core.
The rooms are those of tests/rooms.py. Figures are in docs/architecture.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import rooms

sys.path.insert(0, str(rooms.ROOT))
from lab.sim.corelab import build_plain

CASES = {
    "bulk, 1 % loss": "up=3000000 down=3000000 loss=0.01",
    "with offloads": "up=6000000 down=1000000 gso=65535 tso=65535 gro_ns=20000 rate_Bps=100000000",
    "small segments": "up=20000 down=20000 mss=200 loss=0.02",
}


@dataclass
class Profile:
    """Calls (caller's file, caller, callee's file, callee) and instructions (file, function),
    as callgrind has them.
    """

    calls: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    instructions: Counter[tuple[str, str]] = field(default_factory=Counter)


def read(path: Path) -> Profile:
    """A callgrind file (its format: valgrind's manual, "Callgrind Format Specification")."""
    profile, names = Profile(), {"file": dict[str, str](), "function": dict[str, str]()}

    def name(kind: str, text: str) -> str:
        found = re.fullmatch(r"\((\d+)\)(?: (.*))?", text)
        assert found, text
        if found[2] is not None:
            names[kind][found[1]] = found[2]
        return names[kind][found[1]]

    file = now = function = callee = callee_file = ""
    inclusive = False  # the next line is the cost of a call
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        match key:
            case "fl":
                file = now = name("file", value)
            case "fi" | "fe":
                now = name("file", value)
            case "fn":
                function = name("function", value)
            case "cfi" | "cfl":
                callee_file = name("file", value)
            case "cfn":
                callee = name("function", value)
            case "calls":
                profile.calls[file, function, callee_file or now, callee] += int(value.split()[0])
                callee_file, inclusive = "", True
            case _ if line[:1].isdigit() or line[:1] in set("+-*"):
                if not inclusive:
                    profile.instructions[file, function] += int(line.split()[1])
                inclusive = False
    return profile


class Floors:
    """Which room of the core a function is of, and how high that is."""

    def __init__(self) -> None:
        self.high = rooms.ranks(rooms.C)
        self.files: dict[str, list[str]] = {}
        for file in rooms.sources("C"):
            if file.startswith(rooms.CORE) and file.endswith(".c"):
                for name in {*rooms.shown_by(file), *rooms.kept_by(file)}:
                    self.files.setdefault(name, []).append(file)

    def floor(self, said_file: str, function: str) -> int | None:
        """None: none of the core's. The file that is said may be a header, inlined at
        the function's beginning.
        """
        files = self.files.get(re.split(r"[.']", function)[0])
        if not files:
            return None
        same = [file for file in files if PurePath(file).name == PurePath(said_file).name]
        return self.high[rooms.room_of("C", (same or files)[0]) or ""]


def told(case: str, program: Path, folder: Path) -> str:
    """One case's figures, as a row."""
    path = folder / "callgrind.out"
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={path}",
            program,
            *CASES[case].split(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    packets = sum(
        int(n) for n in re.findall(r"^(?:in|out)_packets_.=(\d+)", done.stdout, re.MULTILINE)
    )
    profile, floors = read(path), Floors()
    inside = between = up = 0
    for (file, function, callee_file, callee), count in profile.calls.items():
        here, there = floors.floor(file, function), floors.floor(callee_file, callee)
        if here is None or there is None:
            continue
        inside += count
        between += count if here != there else 0
        up += count if there > here else 0
    cost = sum(n for of, n in profile.instructions.items() if floors.floor(*of) is not None)
    return f"{case}: {inside} calls, {between} between rooms, {up} up; {packets} packets, {cost} instructions"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        program = build_plain(Path(name))
        for case in CASES:
            print(told(case, program, Path(name)))


if __name__ == "__main__":
    main()
