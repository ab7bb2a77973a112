# SPDX-License-Identifier: Apache-2.0
"""rd.nics: our tc programs on the NICs of user stacks, by tcx and, where a kernel has
none, by clsact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bpf_lab import Bench, bench, u32

from dmm_ebpf import abi, loader
from dmm_ebpf.errors import ConflictError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import tcfilter
from dmm_ebpf.rd.director import nics as nics_module
from dmm_ebpf.rd.director.nics import Nics, remove_tc, tc_name
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.userstack.spec import NicSpec

__all__ = ["bench"]


@pytest.fixture(params=["tcx", "clsact"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """clsact: as on a kernel before 6.6, which refuses the link."""
    if request.param == "clsact":
        monkeypatch.setattr(loader.Attached, "attach_tcx", lambda _self, _ifindex: False)
    return str(request.param)


@pytest.fixture
def state(bench: Bench) -> State:
    """Of the instance, as far as NICs need it."""
    return State(bench.attached.instance, 0, "/", 0)


def served(bench: Bench, state: State) -> tuple[Nics, NicSpec]:
    """The NIC of host a, chosen."""
    nics = Nics(bench.attached, state, lambda: None)
    (spec,) = bench.a.call(nics.choose, [bench.a.nic.name])
    return nics, spec


def there(bench: Bench, ifindex: int) -> bool:
    """Whether both programs are, by whichever way."""
    by_filter: Callable[..., bool] = tcfilter.attached_nic
    return bench.a.call(bench.attached.has_tcx, ifindex) or bench.a.call(
        by_filter, ifindex, tc_name(bench.attached.instance)
    )


def entry(bench: Bench, ifindex: int) -> tuple[int, int] | None:
    """nics[]: slot and stack."""
    value = bench.attached.maps["nics"].lookup(u32(ifindex))
    if value is None:
        return None
    nic = abi.unpack("dmm_nic", value)
    return int(nic.slot), int(nic.stack)


def test_the_programs_come_and_go(way: str, bench: Bench, state: State) -> None:
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    bench.a.call(nics.attach, "wan", [spec])
    assert there(bench, spec.ifindex) and entry(bench, spec.ifindex) == (spec.slot, 0)
    assert state.tc_nics == {spec.name: way == "clsact"}
    assert bench.a.call(tcfilter.has_clsact, spec.ifindex) == (way == "clsact")
    bench.agent.open("x")
    bench.agent.connect("x", bench.b.ip4, bench.port)
    bench.a.call(nics.detach, 5, [spec])
    assert not there(bench, spec.ifindex) and entry(bench, spec.ifindex) is None
    assert not bench.a.call(tcfilter.has_clsact, spec.ifindex)
    assert (state.tc_nics, state.nics) == ({}, {})
    bench.a.call(nics.attach, "wan", [spec])
    assert there(bench, spec.ifindex), "attached at once after"


def test_the_address_of_now_is_entered(way: str, bench: Bench, state: State) -> None:
    """Also of a NIC that was served before, as after a restart or a take-over."""
    nics, spec = served(bench, state)
    for mac in (spec.mac, bytes.fromhex("020000000042")):
        bench.a.call(nics.attach, "wan", [replace(spec, mac=mac)])
        assert bytes(bench.attached.maps.nics[spec.ifindex].mac) == mac


def test_a_nic_that_another_stack_goes_on_using_keeps_them(
    way: str, bench: Bench, state: State
) -> None:
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "lan", [spec])
    bench.a.call(nics.attach, "wan", [spec])
    bench.a.call(lambda: nics.put_xdp("wan", spec, explicit=True))
    bench.a.call(nics.take_xdp, "wan", 5, spec)
    assert entry(bench, spec.ifindex) == (spec.slot, 5)
    bench.a.call(nics.detach, 6, [spec], {spec.ifindex})  # whose the XDP program is not
    assert there(bench, spec.ifindex) and entry(bench, spec.ifindex) == (spec.slot, 5)
    (info,) = (one for one in bench.a.call(hal_nic.list_nics) if one.ifindex == spec.ifindex)
    assert info.has_xdp
    bench.a.call(nics.detach, 5, [spec], {spec.ifindex})
    assert there(bench, spec.ifindex) and entry(bench, spec.ifindex) == (spec.slot, 0)
    (info,) = (one for one in bench.a.call(hal_nic.list_nics) if one.ifindex == spec.ifindex)
    assert not info.has_xdp


def test_xdp_goes_with_the_stack_that_had_it(bench: Bench, state: State) -> None:
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    bench.a.call(lambda: nics.put_xdp("wan", spec, explicit=True))
    bench.a.call(nics.take_xdp, "wan", 5, spec)
    bench.a.call(nics.leave_xdp, 6, spec)  # whose it is not
    assert entry(bench, spec.ifindex) == (spec.slot, 5)
    bench.a.call(nics.leave_xdp, 5, spec)
    assert entry(bench, spec.ifindex) == (spec.slot, 0)
    (info,) = (one for one in bench.a.call(hal_nic.list_nics) if one.ifindex == spec.ifindex)
    assert not info.has_xdp
    assert there(bench, spec.ifindex)


def test_what_was_taken_off_is_told_and_put_back(way: str, bench: Bench, state: State) -> None:
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    assert bench.a.call(nics.missing_tc, spec.ifindex) == ""
    if way == "tcx":
        bench.attached.detach_tcx(spec.ifindex)
    else:
        bench.a.run(["tc", "qdisc", "del", "dev", spec.name, "clsact"])
    assert bench.a.call(nics.missing_tc, spec.ifindex) == "our tc programs were taken off"
    bench.a.call(nics.attach_tc, "wan", spec)
    assert bench.a.call(nics.missing_tc, spec.ifindex) == ""


def test_a_filter_that_is_put_before_ours_is_told_and_overtaken(
    way: str, bench: Bench, state: State
) -> None:
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    if way == "tcx":
        bench.a.run(["tc", "qdisc", "add", "dev", spec.name, "clsact"])
    at = f"tc filter add dev {spec.name} ingress pref 7 bpf da bytecode".split()
    bench.a.run([*at, "1,6 0 0 0,"])
    told = "another tc filter was put before ours at its ingress" if way == "clsact" else ""
    assert bench.a.call(nics.missing_tc, spec.ifindex) == told
    bench.a.call(nics.attach_tc, "wan", spec)
    assert bench.a.call(nics.missing_tc, spec.ifindex) == ""
    bench.agent.open("x")
    bench.agent.connect("x", bench.b.ip4, bench.port)


@pytest.mark.parametrize(
    ("device", "make", "why"),
    [
        ("br0", "link add br0 type bridge", "its driver has no native XDP"),
        ("", "link set {nic} mtu 9000", "its driver takes no XDP program at this MTU"),
    ],
)
def test_auto_puts_native_xdp_on_a_device_or_nothing(
    bench: Bench, state: State, device: str, make: str, why: str
) -> None:
    nic = bench.a.nic.name
    bench.b.ip(f"link set {bench.b.nic.name} mtu 9000")
    bench.a.ip(make.format(nic=nic))
    nics = Nics(bench.attached, state, lambda: None)
    (spec,) = bench.a.call(nics.choose, [device or nic])
    with pytest.raises(KernelFeatureError, match=f"cannot serve {spec.name} with stack wan: {why}"):
        bench.a.call(lambda: nics.put_xdp("wan", spec, explicit=False))
    assert "prog/xdp" not in bench.a.run(["ip", "link", "show", spec.name]).stdout


def test_by_clsact_they_are_found_without_the_director(
    bench: Bench, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.Attached, "attach_tcx", lambda _self, _ifindex: False)
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    assert bench.a.call(remove_tc, "another", state) == []
    assert bench.a.call(remove_tc, state.instance, state) == [f"tc program on {spec.name}"]
    assert not bench.a.call(tcfilter.has_clsact, spec.ifindex)
    assert bench.a.call(remove_tc, state.instance, state) == []


def test_no_flow_begins_behind_a_filter_that_cannot_be_overtaken(
    bench: Bench, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.Attached, "attach_tcx", lambda _self, _ifindex: False)
    nics, spec = served(bench, state)
    bench.a.call(nics.attach, "wan", [spec])
    at = f"dev {spec.name} egress pref 1"
    one, other = f"tc filter add {at} bpf da bytecode".split(), f"tc filter del {at}".split()
    bench.a.run([*f"tc filter del dev {spec.name} egress".split()])
    bench.a.run([*one, "1,6 0 0 0,"])

    def behind() -> tuple[bool, bool]:
        return bool(bench.attached.maps.nics[spec.ifindex].behind), bench.a.call(
            nics.is_behind, spec.name
        )

    with pytest.raises(ConflictError, match="priority 1 at its egress"):
        bench.a.call(nics.attach_tc, "wan", spec)
    assert behind() == (True, True)
    nics.take_xdp("wan", 5, spec)
    assert behind() == (True, True)
    bench.a.run(other)
    bench.a.call(nics.attach_tc, "wan", spec)
    assert behind() == (False, False)
    assert bench.a.call(nics.missing_tc, spec.ifindex) == ""
    bench.a.call(nics.detach, 5, [spec])


def test_one_that_puts_itself_first_each_time_is_left_there_and_no_flow_begins(
    bench: Bench, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else both would go on for ever, and packets would slip through in between."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(nics_module, "time", clock)
    monkeypatch.setattr(loader.Attached, "overtaken_tcx", lambda _self, _ifindex: "egress")
    monkeypatch.setattr(loader.Attached, "attach_tcx", lambda _self, _ifindex: True)
    nics, spec = served(bench, state)
    for _ in range(5):
        bench.a.call(nics.attach_tc, "wan", spec)
    with pytest.raises(ConflictError, match="before ours again and again at its egress"):
        bench.a.call(nics.attach_tc, "wan", spec)
    assert bench.a.call(nics.is_behind, spec.name)
    now[0] += 61
    bench.a.call(nics.attach_tc, "wan", spec)
    assert not bench.a.call(nics.is_behind, spec.name)
    monkeypatch.undo()
    bench.a.call(nics.detach, 5, [spec])


def test_an_ingress_qdisc_of_others_keeps_clsact_away_and_is_told(
    bench: Bench, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes filters for egress, too, and runs them at ingress."""
    monkeypatch.setattr(loader.Attached, "attach_tcx", lambda _self, _ifindex: False)
    nics, spec = served(bench, state)
    bench.a.run(["tc", "qdisc", "add", "dev", spec.name, "ingress"])
    with pytest.raises(ConflictError, match="it has an ingress qdisc"):
        bench.a.call(nics.attach, "wan", [spec])
    assert not there(bench, spec.ifindex) and bench.a.call(nics.is_behind, spec.name)
    bench.a.run(["tc", "qdisc", "del", "dev", spec.name, "ingress"])
    bench.a.call(nics.attach, "wan", [spec])
    assert there(bench, spec.ifindex) and not bench.a.call(nics.is_behind, spec.name)
    bench.a.call(nics.detach, 5, [spec])
