# SPDX-License-Identifier: Apache-2.0
"""Patterns of cgroups: what they match and take in, and what there is of them in a hierarchy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.rd.director import globbed, sync
from dmm_ebpf.rd.policy import cgroupglob
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import Compiled, compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace

POD = "/kubepods.slice/kubepods-pod7.slice/web-1.scope"
ROUTED = """
[stacks.k]
kind = "kernel"
[[tables.t.routes]]
to = "default"
stack = "k"
"""


def compiled(*rules: str) -> Compiled:
    text = ROUTED + "".join(f'[[rules]]\ntable = "t"\n{rule}\n' for rule in rules)
    parsed = policy.parse(text, source="p.toml", base=Path("/"))
    return compile_policy(parsed, IdSpace(), lambda _path: (7, 1))


@pytest.mark.parametrize(
    ("pattern", "path", "is_in"),
    [
        ("/kubepods.slice/*/web-*.scope", POD, True),
        ("/kubepods.slice/*/web-*.scope", f"{POD}/init/below", True),
        ("/kubepods.slice/*/web-*.scope", "/kubepods.slice/web-1.scope", False),
        ("/kubepods.slice/*/web-*.scope", "/kubepods.slice/a/b/web-1.scope", False),
        ("/kubepods.slice/*/web-*.scope", "/kubepods.slice/a", False),
        ("/kubepods.slice/*", POD, True),
        ("/*", "/", False),
        ("/a?c", "/abc", True),
        ("/a?c", "/ac", False),
        ("/a?c", "/a/c", False),
        ("/web-[0-3]", "/web-2", True),
        ("/web-[0-3]", "/web-4", False),
        ("/web-[!0-3]", "/web-4", True),
        ("/[*]", "/*", True),
        ("/[*]", "/a", False),
        ("/[[]x]", "/[x]", True),
        ("/[]]", "/]", True),
        (r"/dev\x2d*", r"/dev\x2dsda.swap", True),
        (r"/dev\x2d*", "/devx2dsda.swap", False),
        ("/Web-*", "/web-1", False),
        ("/.*", "/.a", True),
        ("/a.b*", "/axb", False),
    ],
)
def test_what_a_pattern_takes_in(pattern: str, path: str, is_in: bool) -> None:
    assert cgroupglob.why_not(pattern) == ""
    assert cgroupglob.is_glob(pattern)
    assert cgroupglob.is_in(path, pattern) == is_in


@pytest.mark.parametrize("pattern", ["/a/**", "/**/a", "/a**b", "/[", "/a[]/b]", "/[!]", "/a/[b"])
def test_what_is_no_pattern(pattern: str) -> None:
    assert cgroupglob.why_not(pattern)


letters = st.text("ab*?[]!-", min_size=1, max_size=5)


@given(st.lists(letters, min_size=1, max_size=3), st.lists(letters, min_size=1, max_size=3))
def test_what_one_implies_is_so(narrow: list[str], wide: list[str]) -> None:
    one, other = "/" + "/".join(narrow), "/" + "/".join(wide)
    if cgroupglob.why_not(one) or cgroupglob.why_not(other) or cgroupglob.is_glob(one):
        return
    assert cgroupglob.implies(one, other) == cgroupglob.is_in(one, other)


def test_a_rule_has_the_bit_and_the_depth_of_its_pattern() -> None:
    out = compiled(
        'cgroup = ["/a*", "/b", "/c/*/d"]', 'cgroup = "/c/*/d"\nnot = { cgroup = "/a*" }'
    )
    assert out.globs == ("/a*", "/c/*/d")
    glob, path = C.DMM_RULE_GLOB, C.DMM_RULE_CGROUP
    assert [(one.flags, one.cgroup_id, one.cgroup_level) for one in out.rules] == [
        (glob, 1, 1),
        (path, 7, 1),
        (glob, 2, 3),
        (glob, 1, 1),
        (glob, 2, 3),
    ]
    assert dict(out.cgroups) == {"/b": 7}


def test_listeners_are_held_against_the_pattern() -> None:
    out = compiled('cgroup = "/pods/*"\nnot = { cgroup = "/pods/*/x?" }', 'cgroup = "/p[a-z]ds"')
    paths = {1: "/pods/a", 2: "/pods", 3: "/pods/b/x1/below", 4: "/other", 5: None}
    in_glob = sync.in_glob_by_path(paths.get, out.globs)
    key = abi.new("dmm_listener_key")
    found = [
        sync.listener_table(
            out.rules,
            key,
            abi.new("dmm_listener", cgroup_id=number),
            lambda *_: False,
            in_glob=in_glob,
        )[1]
        for number in paths
    ]
    assert found == [1, 2, 2, 0, 0]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(globbed.cgroups, "find_cgroup2", lambda: tmp_path)
    for path in ("pods/a/web-1", "pods/b/web-2/below", "pods/b/db", "other/a/web-3"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "pods/c").write_text("a control file")
    return tmp_path


def test_what_there_is_and_where_more_would_be(tree: Path) -> None:
    found = globbed.find(["/pods/*/web-*", "/pods/b", "/*/a/web-[3-9]", "/none/*", "/pods/c/*"])
    named = {path.stat().st_ino: str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert {named[number]: bits for number, bits in found.ids.items()} == {
        "pods/a/web-1": 1,
        "pods/b/web-2": 1,
        "pods/b": 2,
        "other/a/web-3": 4,
    }
    ways = {str(folder.relative_to(tree)): names for folder, names in found.ways.items()}
    assert ways == {
        ".": {"pods", "*", "none"},
        "pods": {"*", "b", "a", "c"},
        "pods/a": {"web-*", "web-[3-9]"},
        "pods/b": {"web-*"},
        "other": {"a"},
        "other/a": {"web-[3-9]"},
    }
    entries = globbed.entries({tree: {b"own"}}, found.ways)
    assert [name in entries[tree] for name in (b"own", b"anything")] == [True, True]
    assert [name in entries[tree / "pods/b"] for name in (b"web-9", b"db")] == [True, False]


class Table(dict):
    def delete(self, key: int) -> None:
        del self[key]


class Kept:
    def __init__(self) -> None:
        self.globbed = Table()

    def said(self) -> dict[int, list[int]]:
        return {number: list(one.globs) for number, one in self.globbed.items()}


def test_the_table_has_what_either_half_matches() -> None:
    maps = Kept()
    one = globbed.Globbed(maps)
    assert one.put(0, {5: 1, 6: 3}) and not one.put(0, {6: 3, 5: 1})
    assert one.put(1, {6: 1, 7: 1 << 63})
    assert maps.said() == {5: [1, 0], 6: [3, 1], 7: [0, 1 << 63]}
    other = globbed.Globbed(maps)  # of the next director
    assert other.matched(0) == 3 and other.matched(1) == 1 | 1 << 63
    assert not other.put(1, {6: 1, 7: 1 << 63}) and other.put(0, {})
    assert maps.said() == {6: [0, 1], 7: [0, 1 << 63]}
    assert other.put(1, {}) and maps.said() == {} and other.matched(1) == 0


def test_what_there_is_no_room_for_is_told_of_until_there_is() -> None:
    maps = Kept()
    one, most = globbed.Globbed(maps), int(C.DMM_MAX_GLOBBED)
    room = globbed.Room(one)
    one.put(0, dict.fromkeys(range(most + 2), 1))
    assert len(maps.globbed) == most
    assert room.look().startswith(f"2 more are matched than the {most} that the hooks can know")
    one.put(0, dict.fromkeys(range(2, most + 2), 1))
    assert room.look() == "" and set(maps.globbed) == set(range(2, most + 2))
