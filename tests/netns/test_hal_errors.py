# SPDX-License-Identifier: Apache-2.0
"""What the C adapters cannot do is told with the call's own cause; each is brought about on
the real kernel.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest
from dmm_ebpf.userstack._core import ffi, lib
from hal_lab import Host, hosts, link

from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError, PrivilegeError
from dmm_ebpf.userstack.halerrors import hal_error

NAME = "dmm-9"
LONGEST = 2_000_000

# Stands for a stack process: opens what its arguments say in the namespace it is in, and prints the
# error's kind and sentence.
OPENER = """
import socket, sys
from dmm_ebpf.userstack._core import ffi, lib
from dmm_ebpf.userstack.halerrors import hal_error
error = ffi.new("struct dmm_hal_error *")
if sys.argv[1] == "device":
    done = lib.dmm_tap_open(b"dmm-9", error)
elif sys.argv[1] == "xsk":
    out = ffi.new("struct dmm_xsk **")
    done = lib.dmm_xsk_open(socket.if_nametoindex(sys.argv[2]), 0, 1500, 0, lib.DMM_XSK_PLAIN, out, error)
else:
    out = ffi.new("struct dmm_tapnic **")
    done = lib.dmm_tapnic_open(b"dmm-9.1", socket.if_nametoindex(sys.argv[2]), False, out, error)
shown = hal_error(error)
print(type(shown).__name__, shown, sep="\\n")
"""


def opened_by(prefix: list[str], *what: str) -> tuple[str, str]:
    """The error's kind and sentence, for a process started by the command prefix."""
    argv = [*prefix, sys.executable, "-c", OPENER, *what]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    kind, sentence = done.stdout.splitlines()
    return kind, sentence


def open_xsk(host: Host, queue: int = 0, mtu: int = 1500) -> DmmError:
    error, out = ffi.new("struct dmm_hal_error *"), ffi.new("struct dmm_xsk **")
    index = host.ns.run_in(socket.if_nametoindex, "eth0")
    assert (
        host.ns.run_in(lib.dmm_xsk_open, index, queue, mtu, 64, lib.DMM_XSK_PLAIN, out, error) < 0
    )
    return hal_error(error, "eth0")


def in_namespace(host: Host) -> list[str]:
    return ["ip", "netns", "exec", host.name]


def test_a_queue_is_as_long_as_the_kernel_takes() -> None:
    with hosts(1) as (a,):
        error = ffi.new("struct dmm_hal_error *")
        fd = a.ns.run_in(lib.dmm_tap_open, NAME.encode(), error)
        assert fd >= 0, ffi.string(error.what)
        try:
            length = a.ns.run_in(lib.dmm_tap_up, NAME.encode(), 1500, LONGEST, error)
            assert 0 < length <= LONGEST, hal_error(error)
            assert f"qlen {length}" in a.sh(f"ip link show {NAME}")
            if length < LONGEST:
                with pytest.raises(AssertionError, match="RTNETLINK"):
                    a.sh(f"ip link set {NAME} txqueuelen {length + 1}")
        finally:
            os.close(fd)


def test_a_refused_mtu_is_not_blamed_on_a_frame() -> None:
    with hosts(1) as (a,):
        error = ffi.new("struct dmm_hal_error *")
        fd = a.ns.run_in(lib.dmm_tap_open, NAME.encode(), error)
        try:
            assert a.ns.run_in(lib.dmm_tap_up, NAME.encode(), 100_000, 500, error) == -errno.EINVAL
            sentence = str(hal_error(error))
            assert sentence == f"cannot set the MTU of {NAME}: the device does not take that MTU"
        finally:
            os.close(fd)


def test_a_device_of_that_name_is_a_conflict() -> None:
    with hosts(1) as (a,):
        a.sh(f"ip link add {NAME} type veth peer name other")
        error = ffi.new("struct dmm_hal_error *")
        assert a.ns.run_in(lib.dmm_tap_open, NAME.encode(), error) == -errno.EBUSY
        shown = hal_error(error)
        assert isinstance(shown, ConflictError)
        assert f"make TAP device {NAME}: a device of that name exists" in str(shown)


def test_no_tun_device_node() -> None:
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    kind, sentence = opened_by(hide, "device")
    assert kind == KernelFeatureError.__name__
    assert (
        "open /dev/net/tun" in sentence and "CONFIG_TUN" in sentence and "modprobe tun" in sentence
    )


@pytest.mark.parametrize(
    ("capability", "what", "step"),
    [
        ("net_admin", "device", "make TAP device dmm-9"),
        ("net_raw", "xsk", "open an AF_XDP socket (receive queue 0)"),
        ("net_raw", "tap", "open a packet socket on eth0"),
    ],
)
def test_a_missing_capability_is_named(capability: str, what: str, step: str) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        drop = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
        kind, sentence = opened_by([*in_namespace(a), *drop], what, "eth0")
        assert kind == PrivilegeError.__name__
        assert sentence.startswith(f"cannot {step}: it needs CAP_{capability.upper()}")


def test_locked_memory_that_is_limited() -> None:
    with hosts(2) as (a, b):
        link(a, b)
        drop = [
            "setpriv",
            "--bounding-set=-ipc_lock",
            "--inh-caps=-ipc_lock",
            "prlimit",
            "--memlock=65536",
        ]
        kind, sentence = opened_by([*in_namespace(a), *drop], "xsk", "eth0")
        assert kind == DmmError.__name__
        assert "register the UMEM" in sentence and "RLIMIT_MEMLOCK" in sentence


def test_an_mtu_above_a_frame() -> None:
    with hosts(2) as (a, b):
        link(a, b)
        shown = open_xsk(a, mtu=9000)
        assert isinstance(shown, KernelFeatureError)
        assert "MTU is above 3822" in str(shown)


def test_what_bind_refuses() -> None:
    with hosts(2) as (a, b):
        link(a, b)
        shown = open_xsk(a, queue=9)
        assert isinstance(shown, KernelFeatureError)
        assert str(shown) == (
            "cannot bind an AF_XDP socket (receive queue 9) of eth0: the device has no such queue"
        )


@pytest.mark.parametrize(
    "code", [errno.ERANGE, errno.EPERM, errno.EBUSY, errno.ENOSPC, errno.ENOBUFS]
)
def test_an_errno_of_a_call_without_known_cause_stays_as_it_is(code: int) -> None:
    error = ffi.new("struct dmm_hal_error *")
    error.code, error.call, error.what = code, lib.DMM_HAL_OTHER, b"set the queue length of dmm-9"
    shown = hal_error(error)
    assert type(shown) is DmmError
    assert str(shown) == f"cannot set the queue length of dmm-9: {os.strerror(code)}"
