# SPDX-License-Identifier: Apache-2.0
"""hal.netns, hal.nic, hal.tuning on real namespaces."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from hal_lab import hosts, link

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal import nic, tuning
from dmm_ebpf.hal.netns import NetNS


def _here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_work_runs_there_and_the_caller_stays():
    with hosts(2) as (a, b):
        before = _here()
        assert a.ns.run_in(_here) == a.ns.inode != before
        assert b.ns.run_in(_here) == b.ns.inode != a.ns.inode
        assert _here() == before
        assert len({a.ns.cookie, b.ns.cookie, NetNS.from_arg().cookie}) == 3


def test_executor_serves_an_event_loop_without_moving_it():
    async def main(ns: NetNS) -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(ns.executor, _here), _here()

    with hosts(1) as (a,):
        there, here = asyncio.run(main(a.ns))
        assert there == a.ns.inode != here


def test_a_socket_made_there_belongs_there():
    with hosts(2) as (a, b), a.ns.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 4711))
        one.listen()
        with a.ns.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(("127.0.0.1", 4711))
        with (
            b.ns.socket(socket.AF_INET, socket.SOCK_STREAM) as other,
            pytest.raises(ConnectionRefusedError),
        ):
            other.connect(("127.0.0.1", 4711))


@pytest.mark.parametrize(
    "spec", ["no-such-name", "/proc/1/ns/nothing", 4194304 + 5, "/etc/hostname"]
)
def test_what_is_no_namespace_is_a_usage_error(spec):
    with pytest.raises(UsageError):
        NetNS.from_arg(spec)


def test_by_pid_path_and_descriptor():
    with hosts(1) as (a,):
        with NetNS.from_arg(f"/run/netns/{a.name}") as by_path, NetNS.from_fd(a.ns.fd) as by_fd:
            assert by_path.cookie == by_fd.cookie == a.ns.cookie
        assert NetNS.find(a.ns.inode, a.ns.cookie + 1) is None
        found = NetNS.find(a.ns.inode)
        assert found is not None and found.cookie == a.ns.cookie
        found.close()
    assert NetNS.find(a.ns.inode) is None


def test_nic_facts():
    with hosts(2) as (a, b):
        link(a, b, queues=3)
        found = {n.name: n for n in a.ns.run_in(nic.list_nics)}
        eth = found["eth0"]
        assert (eth.kind, eth.driver, eth.mtu, eth.up, eth.ethernet) == (
            "veth",
            "veth",
            1500,
            True,
            True,
        )
        assert (eth.rx_queues, eth.tx_queues, len(eth.mac)) == (3, 3, 6)
        assert not eth.has_xdp
        assert found["lo"].loopback
        assert a.ns.run_in(nic.ifindex_of, "eth0") == eth.ifindex
        assert a.ns.run_in(nic.ifindex_of, "none") is None


def test_serving_nics_named_default_and_otherwise():
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, c, names=("eth1", "eth0"), net=2)
        assert {n.name for n in a.ns.run_in(nic.serving_nics)} == {"eth0", "eth1"}
        a.sh("ip route add default via 10.9.2.2")
        assert [n.name for n in a.ns.run_in(nic.serving_nics)] == ["eth1"]
        a.sh("ip -6 route add default via fd09:1::2")
        assert [n.name for n in a.ns.run_in(nic.serving_nics)] == ["eth1", "eth0"]
        assert [n.name for n in a.ns.run_in(nic.serving_nics, ["eth0"])] == ["eth0"]
        for wrong in ("lo", "eth7"):
            with pytest.raises(UsageError):
                a.ns.run_in(nic.serving_nics, [wrong])


def test_a_setting_is_of_the_namespace_that_asks():
    with hosts(1) as (a,):
        key = "net/ipv4/tcp_fwmark_accept"
        assert a.ns.run_in(tuning.read, key) == "0"
        a.ns.run_in(tuning.write, key, "1")
        assert (a.ns.run_in(tuning.read, key), tuning.read(key)) == ("1", "0")
        with pytest.raises(
            DmmError, match=r"tcp_fwmark_accept to nonsense: Invalid argument$"
        ) as refused:
            a.ns.run_in(tuning.write, key, "nonsense")
        assert type(refused.value) is DmmError, (
            "a value that the kernel does not take is no lack of privilege"
        )
        with pytest.raises(DmmError, match="no such setting"):
            a.ns.run_in(tuning.write, "net/ipv4/no_such_thing", "1")


def test_a_prepared_device_has_no_ipv6_of_the_hosts():
    with hosts(1) as (a,):
        a.sh("ip tuntap add dev dmm-0.0.in mode tap")
        key = "net/ipv6/conf/dmm-0.0.in/disable_ipv6"
        assert a.ns.run_in(tuning.unprepared, "dmm-0.0.in") == [key]
        a.ns.run_in(tuning.prepare_device, "dmm-0.0.in")
        assert a.ns.run_in(tuning.unprepared, "dmm-0.0.in") == []
        a.sh("ip link set dmm-0.0.in up")
        assert "inet6" not in a.sh("ip addr show dmm-0.0.in")
