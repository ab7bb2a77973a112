# SPDX-License-Identifier: Apache-2.0
"""A copy of this checkout in which a page of docs/develop is followed, to the letter, and what a
review asks of the result.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rooms import ROOT, tracked


def blocks(page: str, language: str = r"\w+") -> list[str]:
    """The code blocks of a page of docs/develop, in their order."""
    text = (ROOT / "docs/develop" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class Checkout:
    """The files of the repository and what is built of them, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        built = [str(file.relative_to(ROOT)) for file in ROOT.glob("dmm_ebpf/**/*.so")]
        for name in [*tracked(), *built]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
        self._git("init", "-q")
        self._git("add", "-A")

    def _git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder, check=True)

    def write(self, name: str, text: str) -> None:
        """A new file."""
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """What a file says now."""
        return (self.folder / name).read_text(encoding="utf-8")

    def put(self, name: str, what: str, *, behind: str) -> None:
        """Into a file that is there, directly behind a text that stands in it once."""
        text = self.read(name)
        assert text.count(behind) == 1, f"{name} has {behind!r} {text.count(behind)} times"
        self.write(name, text.replace(behind, behind + what))

    def run(self, *argv: str) -> None:
        """A command there, which is to end well."""
        env = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            argv, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout}{done.stderr}"

    def draw_map(self) -> None:
        """As docs/develop/map-of-rooms.md says."""
        self.run(sys.executable, "tests/rooms.py")

    def review(self, *tests: str) -> None:
        """What `clang-format -i` leaves of a changed file of C, by width and rooms and the tests
        that the page names.
        """
        self._git("add", "-A")
        self.run("clang-format", "-i", *self._changed())
        width = "tests/unit/test_width.py::test_no_line_is_wider[.c]"
        always = ("tests/unit/test_rooms.py", width)
        self.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *always, *tests)

    def _changed(self) -> list[str]:
        files = [
            str(file.relative_to(self.folder)) for file in self.folder.glob("dmm_ebpf/**/*.[ch]")
        ]
        return [x for x in files if not _same(self.folder / x, ROOT / x)]


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
