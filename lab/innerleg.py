# SPDX-License-Identifier: Apache-2.0
"""A bad line where there is none: loss, reordering and duplication between an app's kernel and
its user stack.

The stack's inner device is no place for lab/wanem, and netem may not be built into the kernel. Two
BPF programs (innerleg.bpf.c) see every packet of the device both ways: they lose some, and send
some, or copies, to another device that gives them back some time later (lab/reinject). Which
packets, the kernel's random numbers say: no seed repeats them. They come by tcx, in front of
dmm-ebpf's own program there: Linux 6.6.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf import abi, loader
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf, explain
from dmm_ebpf.loader.programs import bind_maps
from lab.build import LAB_DIR, program_path
from lab.hosts import READY_TIMEOUT_S, Host, kill_group
from lab.waiting import patient, wait_readable

WAYS = ("to_stack", "to_kernel")
FATES = ("lost", "late", "doubled")
_SOURCE = LAB_DIR / "innerleg.bpf.c"
_ODDS = 1 << 32
# struct leg of innerleg.bpf.c: odds and devices, then the counters.
_SETTINGS = struct.Struct("=6I")
_PACKETS = struct.Struct(f"={len(WAYS) * len(FATES)}Q")
_KEY = bytes(4)
_BEFORE_ALL = 1 << 3  # BPF_F_BEFORE, of no program in particular
_COMPILE_TIMEOUT_S = 60.0
_counter = itertools.count()


@dataclass(frozen=True)
class WayStats:
    """Packets of up to 64 KiB that one way has lost, held back, and doubled (the copy is late)."""

    lost: int
    late: int
    doubled: int


class InnerLeg(Closing):
    """Impairs the inner device of a stack process on a host until it is closed; a context manager.

    device: as dmm_ebpf.hal.stackdevice.inner() names it. lost, late, doubled: probabilities, each
    way. delay_us: how long what is late, and each copy, is held.
    """

    def __init__(
        self,
        host: Host,
        device: str,
        *,
        lost: float,
        late: float,
        doubled: float,
        delay_us: int = 1000,
    ) -> None:
        self.host = host
        self.put_back: dict[str, int] | None = None
        number = next(_counter)
        late_devices = tuple(f"{name}{number}" for name in ("late-stack", "late-kernel"))
        with ExitStack() as made:
            # No link-local address: with one, the kernel has groups to report on these devices.
            host.sysctl("net.ipv6.conf.default.addr_gen_mode", 1)
            try:
                self._process = self._start(device, delay_us, *late_devices)
            finally:
                host.sysctl("net.ipv6.conf.default.addr_gen_mode", 0)
            made.callback(self._stop)
            odds = [min(round(p * _ODDS), _ODDS - 1) for p in (lost, late, doubled)]
            try:
                self._map_fd = host.call(_attach, made, device, late_devices, odds)
            except OSError as error:
                raise explain.refused(f"impair the inner leg on {host.name}", error) from error
            self._made = made.pop_all()

    def _start(self, device: str, delay_us: int, *devices: str) -> subprocess.Popen[Any]:
        process = self.host.popen(
            [
                program_path("reinject"),
                device,
                str(int(abi.C.DMM_TCIN_MARK)),
                str(delay_us),
                *devices,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout and process.stderr
        if (
            not wait_readable(process.stdout.fileno(), READY_TIMEOUT_S)
            or process.stdout.readline() != "ready\n"
        ):
            process.kill()
            why = process.stderr.read().strip()
            kill_group(process)
            raise DmmError(f"make a way round {device}", why=why or "it said nothing for 10 s")
        return process

    def stats(self) -> dict[str, WayStats]:
        """What happened so far, by way: to_stack, to_kernel."""
        value = bpf.map_lookup(self._map_fd, _KEY, _SETTINGS.size + _PACKETS.size)
        packets = iter(_PACKETS.unpack_from(value, _SETTINGS.size))
        return {way: WayStats(*itertools.islice(packets, len(FATES))) for way in WAYS}

    def _stop(self) -> None:
        try:
            out, _ = self._process.communicate("", timeout=READY_TIMEOUT_S)
            self.put_back = json.loads(out or "{}")
        finally:
            kill_group(self._process)
            self.host.processes.remove(self._process)

    def close(self) -> None:
        """The device is as before; what was under way round it is lost. Harmless when repeated."""
        self._made.close()


def _attach(made: ExitStack, device: str, late_devices: tuple[str, ...], odds: list[int]) -> int:
    """In the host's network namespace: the programs at their devices until made is closed; fd
    of their map.
    """
    map_fd = bpf.map_create("innerleg", bpf.MapType.ARRAY, 4, _SETTINGS.size + _PACKETS.size, 1)
    made.callback(os.close, map_fd)
    late = [socket.if_nametoindex(name) for name in late_devices]
    inner = socket.if_nametoindex(device)
    settings = _SETTINGS.pack(*odds, *late, inner)
    bpf.map_update(map_fd, _KEY, settings + bytes(_PACKETS.size))
    for name, ifindex, kind in (
        ("back", late[1], bpf.AttachType.TCX_INGRESS),
        ("to_stack", inner, bpf.AttachType.TCX_EGRESS),
        ("to_kernel", inner, bpf.AttachType.TCX_INGRESS),
    ):
        prog_fd = bpf.prog_load(
            name, bpf.ProgType.SCHED_CLS, bind_maps(_programs()[name], {0: map_fd})
        )
        try:
            made.callback(os.close, bpf.link_create(prog_fd, ifindex, kind, _BEFORE_ALL))
        finally:
            os.close(prog_fd)
    return map_fd


@functools.cache
def _programs() -> dict[str, bytes]:
    """Bytecode of innerleg.bpf.c by function, with map 0 for its map."""
    include = Path("/usr/include")
    folders = (abi.bpf_dir(), include, include / str(sysconfig.get_config_var("MULTIARCH")))
    job = {
        "source": str(_SOURCE),
        "compat": str(abi.bpf_dir() / "compat"),
        "cflags": [*(f"-I{folder}" for folder in folders), "-Wall", "-Wextra", "-Werror"],
        "programs": ["to_stack", "to_kernel", "back"],
    }
    command = [sys.executable, "-I", str(Path(loader.__file__).with_name("bcc_child.py"))]
    done = subprocess.run(
        command,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=patient(_COMPILE_TIMEOUT_S),
        check=False,
    )
    if done.returncode:
        raise DmmError(f"compile {_SOURCE.name}", why=done.stderr.strip())
    return {name: bytes.fromhex(code) for name, code in json.loads(done.stdout).items()}
