# SPDX-License-Identifier: Apache-2.0
"""Tables on the kernel's own maps: each kind of key and value, many at once, and what is
of another type.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import Maps, bpf, programs
from dmm_ebpf.loader import compile as compiling
from dmm_ebpf.loader.spec import ADDR_PAIR, MAPS

MANY = 10_000  # more than one read of the kernel's gives


@pytest.fixture
def maps() -> Iterator[Maps]:
    made = programs.create_maps()
    yield made
    programs.close_maps(made)


def test_every_map_is_as_it_is_specified(maps: Maps) -> None:
    assert [spec.name for spec in MAPS if not spec.is_of(maps[spec.name])] == []
    assert not Maps.nics.is_of(maps["seats"]) and not Maps.rules.is_of(maps["stacks"])


def test_array(maps: Maps) -> None:
    assert maps.stack_state[3].up == 0
    maps.stack_state[3] = abi.new("dmm_stack_state", up=5, pid=77)
    held = maps.stack_state[3]
    assert (held.up, held.pid) == (5, 77)
    held.up = 1  # a copy: the map's own stays
    assert maps.stack_state[3].up == 5
    assert maps.stack_state.get(C.DMM_MAX_STACKS) is None
    with pytest.raises(KeyError, match="map stack_state has no entry for 64"):
        maps.stack_state[C.DMM_MAX_STACKS]
    maps.inner_devs[1] = 9
    assert (maps.inner_devs[1], maps.inner_devs[2]) == (9, 0)
    assert [(i, state.up) for i, state in maps.stack_state.items() if state.up] == [(3, 5)]


def test_hash_with_a_number_for_key(maps: Maps) -> None:
    assert maps.nics.get(4) is None and 4 not in maps.nics
    maps.nics[4] = abi.new("dmm_nic", slot=1, bare=1)
    assert 4 in maps.nics and list(maps.nics) == [4] and maps.nics.count() == 1
    assert maps.nics.delete(4) and not maps.nics.delete(4)
    cookie = 1 << 40
    maps.more_flows[cookie] = abi.new("dmm_flow", cookie=cookie)
    assert [(key, flow.cookie) for key, flow in maps.more_flows.items()] == [(cookie, cookie)]


def test_hash_with_a_struct_for_key(maps: Maps) -> None:
    pairs = [
        ADDR_PAIR.type(bytes(16), i.to_bytes(16, "big"), lport_be=i & 0xFFFF) for i in range(MANY)
    ]
    maps.xdp_flows.update(
        {
            pair: abi.new("dmm_xdp_flow", stack=1, seat=1 + i % 2, orphan=i == 4)
            for i, pair in enumerate(pairs)
        }
    )
    assert maps.xdp_flows.count() == MANY and set(maps.xdp_flows) == set(pairs)
    assert {pair: flow.seat for pair, flow in maps.xdp_flows.items()} == dict(
        zip(pairs, (1 + i % 2 for i in range(MANY)), strict=True)
    )
    assert maps.xdp_flows.where(stack=1, seat=2) == set(pairs[1::2])
    assert maps.xdp_flows.where(stack=1, seat=1, orphan=1) == {pairs[4]}
    assert maps.xdp_flows.where(stack=2) == set()
    assert sum(flow.seat for flow in maps.xdp_flows.views()) == MANY // 2 * 3
    assert maps.xdp_flows.delete(pairs[0]) and pairs[0] not in maps.xdp_flows


def test_values_are_copies_and_outlive_the_read(maps: Maps) -> None:
    maps.more_flows.update({i: abi.new("dmm_flow", cookie=i) for i in range(MANY)})
    assert sorted(flow.cookie for flow in list(maps.more_flows.values())) == list(range(MANY))


def test_every_cpu_has_its_own_counter(maps: Maps) -> None:
    assert maps.counters.percpu(C.DMM_CNT_CONNECT) == [0] * bpf.possible_cpus()
    assert maps.counters.percpu(C.DMM_CNT_MAX) == []


def test_what_is_of_another_type_does_not_get_in(maps: Maps) -> None:
    with pytest.raises(TypeError, match="is no struct dmm_nic"):
        maps.nics[1] = abi.new("dmm_seat")
    with pytest.raises(TypeError, match="is no struct dmm_addr_pair"):
        maps.xdp_flows[bytes(40)] = abi.new("dmm_xdp_flow")
    with pytest.raises(OverflowError, match="is no __u32"):
        maps.nics.delete(-1)
    with pytest.raises(TypeError, match="events has no keys"):
        _ = maps.events
    assert maps.nics.count() == maps.xdp_flows.count() == 0


def test_a_program_that_takes_a_value_for_another_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = dict(compiling.c_types()) | {"DMM_VALUE_nics": "struct dmm_seat"}
    monkeypatch.setattr(compiling, "c_types", wrong.items)
    with pytest.raises(DmmError, match=r"cannot compile the BPF programs: .*struct dmm_nic"):
        compiling._compile(compiling.features())
