# SPDX-License-Identifier: Apache-2.0
"""Kernel settings that a user stack needs, set so that they can be put back.

A setting is named by its path below /proc/sys with slashes (device names may hold dots). set_all() tells
what stood there before; restore() puts that back only where our value still stands, so an administrator's
later change wins. Settings of dmm-k itself need no restoring: they disappear with the device. /proc/sys/net
shows the namespace of the thread that opens it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError

_ROOT = Path("/proc/sys")

# The mark that the tc program put on a stack's packet goes over to what answers it, which thereby goes back through
# dmm-k: tcp_fwmark_accept to the accepted socket, so to its SYN-ACK, too; fwmark_reflect to answers that no socket
# sends, as a RST to a segment of a connection that the kernel has forgotten, or a firewall's ICMP error. Otherwise
# these would go to the remote peer, which knows other sequence numbers, and the stack would wait in vain.
INSTANCE_SETTINGS: Mapping[str, str] = {
    "net/ipv4/tcp_fwmark_accept": "1",
    "net/ipv4/fwmark_reflect": "1",
    "net/ipv6/fwmark_reflect": "1",
}


def instance_settings() -> dict[str, str]:
    """INSTANCE_SETTINGS that this kernel has: those of IPv6 are left out where it runs without."""
    return {
        k: v for k, v in INSTANCE_SETTINGS.items() if not k.startswith("net/ipv6/") or (_ROOT / k).exists()
    }


def device_settings(device: str) -> dict[str, str]:
    """What dmm-k needs.

    rp_filter and src_valid_mark: its packets' sources are reached through other devices in the main table.
    The IPv6 ones keep the kernel from sending router solicitations and making addresses of its own on the
    device; disable_ipv6 would do that too, but then nothing could be routed through it.
    """
    return {
        f"net/ipv4/conf/{device}/rp_filter": "0",
        f"net/ipv4/conf/{device}/src_valid_mark": "1",
        f"net/ipv4/conf/{device}/accept_redirects": "0",
        f"net/ipv6/conf/{device}/addr_gen_mode": "1",
        f"net/ipv6/conf/{device}/accept_ra": "0",
        f"net/ipv6/conf/{device}/router_solicitations": "0",
        f"net/ipv6/conf/{device}/accept_redirects": "0",
    }


def read(key: str) -> str:
    """The setting's value. KernelFeatureError when this kernel has none of that name."""
    try:
        return (_ROOT / key).read_text(encoding="ascii").strip()
    except FileNotFoundError as exc:
        raise KernelFeatureError(
            f"read {key.replace('/', '.')}", why="this kernel has no such setting"
        ) from exc


def write(key: str, value: str) -> None:
    """Sets it. KernelFeatureError when there is none, PrivilegeError when it may not be written, else DmmError."""
    try:
        (_ROOT / key).write_text(value, encoding="ascii")
    except FileNotFoundError as exc:
        raise KernelFeatureError(
            f"set {key.replace('/', '.')}", why="this kernel has no such setting"
        ) from exc
    except OSError as exc:
        what, why = f"set {key.replace('/', '.')} to {value}", os.strerror(exc.errno or 0)
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PrivilegeError(what, why=why, hint="/proc/sys must be writable") from exc
        raise DmmError(what, why=why) from exc


def set_all(settings: Mapping[str, str]) -> dict[str, str]:
    """Sets every setting, or none; returns the former values of those that changed."""
    before: dict[str, str] = {}
    try:
        for key, value in settings.items():
            old = read(key)
            if old != value:
                write(key, value)
                before[key] = old
    except DmmError:
        for key, old in before.items():
            write(key, old)
        raise
    return before


def restore(before: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Puts former values back where ours still stand; returns the settings that were put back."""
    done = []
    for key, old in before.items():
        if read(key) == ours.get(key):
            write(key, old)
            done.append(key)
    return done


def prepare_tun(device: str) -> None:
    """device_settings() on a TUN device; IPv6 settings are left out where the kernel runs without IPv6."""
    for key in unprepared(device):
        write(key, device_settings(device)[key])


def unprepared(device: str) -> list[str]:
    """Those of device_settings() that do not stand as they should."""
    wanted = device_settings(device).items()
    there = ((k, v) for k, v in wanted if not k.startswith("net/ipv6/") or (_ROOT / k).exists())
    return [key for key, value in there if read(key) != value]
