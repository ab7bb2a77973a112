# SPDX-License-Identifier: Apache-2.0
"""A bad line where there is none: loss, reordering and duplication between an app's kernel and its user stack.

The stack's TUN device is no place for tools/lab/wanem, and netem may not be built into the kernel. nftables' netdev
hooks see every packet of the device both ways: they send some to a device where they are lost, and some, or copies, to
another that gives them back some time later (tools/lab/reinject). A drop would not do for loss: the kernel that sends
is told of it, and then forgets a connection whose SYN-ACK it could not send. Which packets, the kernel's random
numbers say: no seed repeats them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.build import program_path
from lab.hosts import READY_TIMEOUT_S, Host, kill_group
from lab.waiting import wait_readable

WAYS = {"to_stack": "egress", "to_kernel": "ingress"}
FATES = ("lost", "late", "doubled")
_MOD = 100_000
_counter = itertools.count()
_RULES = """\
table netdev {table} {{
    chain to_stack {{
        type filter hook egress device "{device}" priority 0;
        numgen random mod {mod} < {lost} counter fwd to "{gone}" comment "lost"
        numgen random mod {mod} < {doubled} counter dup to "{late_stack}" comment "doubled"
        numgen random mod {mod} < {late} counter fwd to "{late_stack}" comment "late"
    }}
    chain to_kernel {{
        type filter hook ingress device "{device}" priority 0;
        numgen random mod {mod} < {lost} counter fwd to "{gone}" comment "lost"
        numgen random mod {mod} < {doubled} counter dup to "{late_kernel}" comment "doubled"
        numgen random mod {mod} < {late} counter fwd to "{late_kernel}" comment "late"
    }}
    chain back {{
        type filter hook ingress device "{late_kernel}" priority 0;
        meta mark set {mark}
    }}
}}
"""


@dataclass(frozen=True)
class WayStats:
    """Packets of up to 64 KiB that one way has lost, held back, and doubled (the copy is late)."""

    lost: int
    late: int
    doubled: int


class InnerLeg(Closing):
    """Impairs a stack's device on a host until it is closed; a context manager.

    device, mark: of the stack's process, as `dmm-ebpf stacks` says. lost, late, doubled: probabilities, each way.
    delay_us: how long what is late, and each copy, is held.
    """

    def __init__(
        self,
        host: Host,
        device: str,
        mark: int,
        *,
        lost: float,
        late: float,
        doubled: float,
        delay_us: int = 1000,
    ) -> None:
        self.host = host
        self.put_back: dict[str, int] | None = None
        number = next(_counter)
        self._table = f"inner_leg_{number}"
        late_stack, late_kernel, gone = (f"{name}{number}" for name in ("late-stack", "late-kernel", "lost"))
        # No link-local address: with one, the kernel has groups to report on these devices.
        host.sysctl("net.ipv6.conf.default.addr_gen_mode", 1)
        try:
            self._process = self._start(device, delay_us, late_stack, late_kernel, gone)
        finally:
            host.sysctl("net.ipv6.conf.default.addr_gen_mode", 0)
        # What comes back has a source that is not routed to the device that it comes in by.
        host.sysctl("net.ipv4.conf.all.rp_filter", 0)
        host.sysctl(f"net.ipv4.conf.{late_kernel}.rp_filter", 0)
        parts = {name: round(p * _MOD) for name, p in (("lost", lost), ("late", late), ("doubled", doubled))}
        rules = _RULES.format(
            table=self._table,
            device=device,
            late_stack=late_stack,
            late_kernel=late_kernel,
            gone=gone,
            mark=mark,
            mod=_MOD,
            **parts,
        )
        try:
            self._nft("-f", "-", rules=rules)
        except BaseException:
            kill_group(self._process)
            raise

    def _start(self, device: str, delay_us: int, *devices: str) -> subprocess.Popen[Any]:
        process = self.host.popen(
            [program_path("reinject"), device, str(delay_us), *devices],
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

    def _nft(self, *words: str, rules: str | None = None) -> str:
        done = self.host.run(["nft", *words], input=rules, check=False)
        if done.returncode:
            why = " ".join(done.stderr.split())
            raise DmmError(f"impair the inner leg on {self.host.name}", why=why or "nft failed")
        return str(done.stdout)

    def stats(self) -> dict[str, WayStats]:
        """What happened so far, by way: to_stack, to_kernel."""
        listed = json.loads(self._nft("-j", "list", "table", "netdev", self._table))["nftables"]
        counted = {way: dict.fromkeys(FATES, 0) for way in WAYS}
        for item in listed:
            rule = item.get("rule")
            if rule and rule["chain"] in counted:
                packets = next(word["counter"]["packets"] for word in rule["expr"] if "counter" in word)
                counted[rule["chain"]][rule["comment"]] = packets
        return {way: WayStats(**fates) for way, fates in counted.items()}

    def close(self) -> None:
        """The device is as before; what was under way round it is lost. Harmless when repeated."""
        if self.put_back is not None:
            return
        self.put_back = {}
        try:
            self._nft("delete", "table", "netdev", self._table)
            out, _ = self._process.communicate("", timeout=READY_TIMEOUT_S)
            self.put_back = json.loads(out or "{}")
        finally:
            kill_group(self._process)
            self.host.processes.remove(self._process)
