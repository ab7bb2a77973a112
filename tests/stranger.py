# SPDX-License-Identifier: Apache-2.0
"""A copy of this checkout in which a page of docs/develop is followed, to the letter, and what a
review asks of the result.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rooms import ROOT, tracked

PAGES = ROOT / "docs/develop"


def blocks(page: str, language: str = r"\w+") -> list[str]:
    """The code blocks of a page of docs/develop, in their order."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def places(page: str) -> list[tuple[str, str]]:
    """The code blocks of a page that are lines of the checkout, each with the file that the page
    has named last before it.
    """
    text = (PAGES / page).read_text(encoding="utf-8")
    found, file = [], ""
    for name, block in re.findall(r"`([\w/.-]+/[\w.-]+\.\w+)`|```\w+\n(.*?)```", text, re.DOTALL):
        if block:
            found.append((file, block))
        else:
            file = name
    return found


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

    def replace(self, name: str, what: str, by: str) -> None:
        """In a file that is there, a text that stands in it once."""
        text = self.read(name)
        assert text.count(what) == 1, f"{name} has {what!r} {text.count(what)} times"
        self.write(name, text.replace(what, by))

    def twin(self, page: str, renamed: Callable[[str], str]) -> None:
        """Behind each block of a page, wherever its file has it, the same for another name."""
        for name, block in places(page):
            wanted = [line.strip() for line in block.splitlines()]
            lines = self.read(name).splitlines(keepends=True)
            bare = [line.strip(" \t\\\n") for line in lines]
            ends = [
                at + len(wanted)
                for at in range(len(lines))
                if bare[at : at + len(wanted)] == wanted
            ]
            assert ends, f"{page}: not in {name}:\n{block}"
            for end in reversed(ends):
                lines[end:end] = renamed("".join(lines[end - len(wanted) : end]))
            self.write(name, "".join(lines))

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

    def review(self) -> None:
        """What `clang-format -i`, `ruff check --fix` and `ruff format` leave of what was changed,
        by lint, width and rooms.
        """
        self._git("add", "-A")
        ruff = str(Path(sys.executable).with_name("ruff"))
        changed = self.changed()
        code = [name for name in changed if name.endswith((".c", ".h"))]
        python = [name for name in changed if name.endswith(".py")]
        if code:
            self.run("clang-format", "-i", *code)
        if python:
            self.run(ruff, "check", "-q", "--fix", *python)
            self.run(ruff, "format", "-q", *python)
        self.test("tests/unit/test_rooms.py", "tests/unit/test_width.py")

    def test(self, *tests: str) -> None:
        """By pytest, there."""
        self.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)

    def changed(self) -> list[str]:
        """What differs from this checkout, also what is new; not what is built."""
        said = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=self.folder, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return [x for x in said.splitlines() if not _same(self.folder / x, ROOT / x)]


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
