# SPDX-License-Identifier: Apache-2.0
"""The parts of the loader that need no kernel: map numbers, BTF, mountinfo,
names, the specification.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.instancename import check_name
from dmm_ebpf.loader import cgroup, groupmade, link, programs
from dmm_ebpf.loader.spec import FUNCTIONS, MAPS, STEPS, Maps
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.director.rundir import RunDir

INSN = struct.Struct("=BBhi")
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("map"), st.integers(0, 9), st.integers(0, 18)),
            st.tuples(st.just("number"), st.integers(0, 9), st.integers(-(2**31), 2**31 - 1)),
            st.tuples(st.just("other"), st.integers(0, 9), st.integers(-(2**31), 2**31 - 1)),
        )
    )
)
def test_only_map_references_are_bound(parts: list[tuple[str, int, int]]) -> None:
    fds = {number: 1000 + number for number in range(19)}
    code, wanted = b"", b""
    for kind, register, value in parts:
        if kind == "other":
            code += INSN.pack(0xB7, register, 0, value)
            wanted += INSN.pack(0xB7, register, 0, value)
            continue
        source = PSEUDO_MAP_FD if kind == "map" else 0
        # The second half looks like a map reference on purpose: it is data.
        second = INSN.pack(LD_IMM64 if kind == "number" else 0, PSEUDO_MAP_FD << 4, 0, 3)
        code += INSN.pack(LD_IMM64, register | source << 4, 0, value) + second
        wanted += (
            INSN.pack(LD_IMM64, register | source << 4, 0, fds[value] if kind == "map" else value)
            + second
        )
    assert programs.bind_maps(code, fds) == wanted


def _call_of(number: int) -> bytes:
    """A load of a step's address, as the compiler leaves it."""
    return INSN.pack(LD_IMM64, 2 | link.PSEUDO_FUNC << 4, 0, number) + bytes(8)


EXIT = INSN.pack(0x95, 0, 0, 0)


def test_a_program_without_loops_stays_as_it_is() -> None:
    assert link.link("p", {"p": EXIT, "s": EXIT}, ["s"]) == link.Linked(EXIT)


def test_steps_are_linked_once_each_and_with_the_steps_they_need() -> None:
    code = {
        "p": _call_of(2) + _call_of(0) + _call_of(2) + EXIT,  # instructions 0 to 6
        "a": EXIT,
        "unused": EXIT,
        "c": EXIT + _call_of(0) + EXIT,
    }
    linked = link.link("p", code, ["a", "unused", "c"])
    # Behind each step's own start is the move of the argument from r2 to r1.
    assert linked.functions == [("p", 0), ("c", 7), ("a", 12)]
    assert len(linked.code) == 8 * 14
    found = {
        at // 8: at // 8 + imm + 1 for at, imm in link.references(linked.code, link.PSEUDO_FUNC)
    }
    assert found == {0: 7, 2: 12, 4: 7, 9: 12}
    for start in (7, 12):
        assert INSN.unpack_from(linked.code, start * 8) == (0xBF, 0x21, 0, 0)
    info = link.function_info(linked)
    assert list(struct.iter_unpack("=2I", info)) == [(0, 3), (7, 4), (12, 5)]


def test_what_is_called_is_linked_once_and_takes_its_argument_where_it_is() -> None:
    call = INSN.pack(link.CALL, 0, 0, link.CALLS)
    code = {"p": call + call + _call_of(1) + EXIT, "walk": EXIT, "step": call + EXIT}
    linked = link.link("p", code, ["walk", "step"])
    assert linked.functions == [("p", 0), ("step", 5), ("walk", 8)]
    made = [INSN.unpack_from(linked.code, at * 8) for at in (0, 1, 6)]
    assert made == [(link.CALL, link.PSEUDO_CALL << 4, 0, 8 - at - 1) for at in (0, 1, 6)]
    assert list(link.calls(linked.code)) == []
    assert link.uses(code["p"]) == {0, 1}


def test_what_is_called_is_a_global_function_of_a_pointer() -> None:
    data = link.function_btf(["p", "walk"], {"walk": 24})
    types, strings = struct.unpack_from("=IIII", data, 8)[1], data[24:]
    kinds = struct.unpack_from("=20I", strings)[7:13]
    assert types == 4 * len(struct.unpack_from(f"={types // 4}I", strings))
    assert kinds[1::3] == (12 << 24, 12 << 24 | 1)  # static, global
    assert (kinds[2], kinds[5]) == (2, 7)  # int (void), int (struct walk *)


def test_storage_btf_has_the_layout_of_btf_rst() -> None:
    data = programs.storage_btf(72)
    magic, version, flags, header, type_off, type_len, str_off, str_len = struct.unpack_from(
        "=HBBIIIII", data
    )
    assert (magic, version, flags, header, type_off) == (0xEB9F, 1, 0, 24, 0)
    assert str_off == type_len and len(data) == header + type_len + str_len
    assert data[header + str_off :].split(b"\0")[1:3] == [b"int", b"char"]
    assert struct.unpack_from("=I", data, header + type_len - 4) == (72,)


def test_every_map_and_program_of_the_sources_is_specified() -> None:
    text = "".join(path.read_text() for path in sorted(abi.bpf_dir().glob("*.[ch]")))
    assert set(re.findall(r"DMM_MAP\((\w+)\)", text)) - {"name"} == {spec.name for spec in MAPS}
    entries = (abi.bpf_dir() / "dmm.bpf.c").read_text()
    assert re.findall(r"^int (\w+)\(", entries, re.MULTILINE) == list(FUNCTIONS)
    steps = set(re.findall(r"DMM_(?:STEP|CALL)\((\w+)\)", text)) - {"name"}
    assert steps == {name.removeprefix("dmm_") for name in STEPS}
    assert all(len(spec.name) <= 15 for spec in MAPS), "a map's name is cut at 15 characters"
    assert all("." not in spec.name for spec in MAPS), "bpffs refuses dots"


def test_a_struct_with_holes_is_no_key() -> None:
    """Keys are hashed byte by byte: their size must be the sum of their fields."""
    for name in ("dmm_listener", "dmm_flow"):
        with pytest.raises(
            AssertionError, match=f"struct {name} has holes, or fields that are no integers"
        ):
            abi.KeyForm(name)


@given(st.binary(min_size=40, max_size=40), st.integers(0, 3))
def test_a_key_is_the_struct_that_its_bytes_are(data: bytes, more: int) -> None:
    form = abi.KeyForm("dmm_addr_pair")
    (key, *others) = form.unpack_all(data * (1 + more))
    assert form.pack(key) == data and set(others) <= {key}
    struct_of = abi.unpack("dmm_addr_pair", data)
    assert (key.laddr, key.lport_be, key.family) == (
        bytes(struct_of.laddr),
        struct_of.lport_be,
        struct_of.family,
    )


def test_what_is_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="is no struct dmm_nic"):
        abi.StructForm("dmm_nic").pack(abi.new("dmm_seat"))
    with pytest.raises(TypeError, match="is no struct dmm_nic"):
        abi.StructForm("dmm_nic").pack(bytes(12))
    with pytest.raises(TypeError, match="is no struct dmm_addr_pair"):
        abi.KeyForm("dmm_addr_pair").pack((bytes(16), bytes(16), 1, 2, 2, 6, 0))
    for value in (-1, 1 << 32, "1"):
        with pytest.raises(OverflowError, match="is no __u32"):
            abi.U32.pack(value)  # type: ignore[arg-type]


def test_a_copy_outlives_what_it_was_a_part_of() -> None:
    flow = abi.new("dmm_flow", cookie=7)
    flow.decision.generation = 3
    decision, again = abi.copy(flow.decision), abi.copy(flow)
    flow.decision.generation = flow.cookie = 0
    assert (decision.generation, again.cookie, again.decision.generation) == (3, 7, 3)


def test_maps_are_listed_once_with_what_they_hold() -> None:
    assert [spec.name for spec in MAPS] == list(dict.fromkeys(spec.name for spec in MAPS))
    assert Maps.nics is next(spec for spec in MAPS if spec.name == "nics")
    assert (Maps.nics.key_size, Maps.nics.value_size) == (4, abi.sizeof("dmm_nic"))
    assert (Maps.routes.key_size, Maps.routes.value_size, Maps.events.key_size) == (4, 4, 0)
    with pytest.raises(KeyError):
        _ = Maps({}).nics


def test_a_rule_is_small_and_the_limits_fit_their_fields() -> None:
    assert abi.sizeof("dmm_rule") == 104
    assert (
        next(s for s in MAPS if s.name == "xsks").max_entries == C.DMM_MAX_NICS * C.DMM_MAX_QUEUES
    )


@pytest.mark.parametrize("name", ["default", "run-1234", "A_b", "0", "x" * 32])
def test_names_that_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a.b", "a/b", "-a", "_a", "a b", "a\n", "ä", "x" * 33]
)
def test_names_that_are_refused(name: str) -> None:
    for use in (check_name, RunDir, Client, loader.adopt):
        with pytest.raises(UsageError, match="cannot use the instance name"):
            use(name)


def test_mountinfo_is_read_as_proc5_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(
        b"29 23 0:25 / /media/a\xff\xfe rw - ext4 /dev/sdb\xff rw\n"
        b"30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        b"31 23 0:27 /sub /container rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw\n"
        b"32 23 0:27 / /mnt/with\\040space\\134 rw - cgroup2 none rw\n"
        b"33 23 0:27 / /covered rw - cgroup2 none rw\n"
        b"34 23 0:27 / /mnt/\xff\\134 rw - cgroup2 none rw\n"
    )
    magic = {
        "/mnt/\udcff\\": 0x63677270,
        "/mnt/with space\\": 0x63677270,
        "/container": 0x63677270,
        "/covered": 0x01021994,
    }
    monkeypatch.setattr(cgroup.bpf, "fs_magic", magic.__getitem__)
    found = [str(mount.path) for mount in cgroup._mounts(mountinfo, Path("/"))]
    assert found == ["/mnt/with space\\", "/mnt/\udcff\\", "/container"]
    assert cgroup._mounts(tmp_path / "none", Path("/")) == []


@pytest.mark.parametrize("changed", ["abi.h", "dmm.h"])
def test_a_header_that_changed_since_the_build_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    abi._check_built()
    for header in ("abi.h", "dmm.h"):
        more = b"\n" if header == changed else b""
        (tmp_path / header).write_bytes((abi.bpf_dir() / header).read_bytes() + more)
    monkeypatch.setattr(abi, "bpf_dir", lambda: tmp_path)
    with pytest.raises(
        DmmError, match="has changed since they were built; build them: tools/bootstrap"
    ):
        abi._check_built()


def test_a_cgroup_is_waited_for_by_its_path_from_the_root() -> None:
    root = Path("/sys/fs/cgroup/unified")
    key = groupmade.key_of(root / "system.slice/shop.service", root)
    assert key is not None
    assert len(key) == abi.sizeof("dmm_waited_key")
    assert key.rstrip(b"\0") == b"/system.slice/shop.service"
    longest = C.DMM_WAITED_PATH - len("/\0")
    assert groupmade.key_of(root / ("a" * longest), root) is not None
    assert groupmade.key_of(root / ("a" * (longest + 1)), root) is None


@given(st.sets(st.integers(0, C.DMM_MAX_CHECKS - 1)))
def test_each_rule_that_waits_has_its_bit(indices: set[int]) -> None:
    words = groupmade.bits(sorted(indices))
    assert 2 * len(words) == len(abi.new("dmm_waited").rules)
    assert {i for i in range(256) if words[i // 64] >> i % 64 & 1} == indices
    assert max(words) < 2**64
