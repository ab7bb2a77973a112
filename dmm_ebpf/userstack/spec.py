# SPDX-License-Identifier: Apache-2.0
"""What a stack process is told: the stack's numbers, its NICs, limits and paths. JSON on the
descriptor it inherits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmm_ebpf.hal import stackdevice
from dmm_ebpf.kit.names import Plugin

# What a process may count on (docs/develop/write-a-stack-process.md); counted up when one that did
# would not work now.
CONTRACT = 3
_DEFAULT_MEMORY_BYTES = 256 << 20  # the core's
# Both legs and their share of the tables take a third of it, see docs/architecture.md
_CONNECTION_BYTES = 4096
_QUEUE_BYTES = 32 << 20  # UMEM of one receive queue with large frames
_DEVICE_BYTES = 9 << 20  # frames of a device of the outer leg
_PROGRAM_BYTES = 256 << 20  # interpreter, code and whatever the kernel counts besides


def process_label(name: str, process: int) -> str:
    """A process of a stack in messages and file names: the stack's name, with "@1" and so on after
    the first. No stack
    is called so: a name has no "@".
    """
    return f"{name}@{process}" if process else name


def control_path(run_dir: Path, label: str) -> Path:
    """The socket of the process of that label."""
    return run_dir / f"stack-{label}.sock"


def pid_path(run_dir: Path, label: str) -> Path:
    """The file with the pid and start time of the process of that label."""
    return run_dir / f"stack-{label}.pid"


@dataclass(frozen=True)
class NicSpec:
    """One NIC: slot is its place in xsks and outer_devs, queues how many receive queues it has, mtu
    of the IP packet in bytes. bare: its packets have no link header; mac is 0 then.

    xsk: the process is to have AF_XDP sockets on the queues, besides its TAP device; has, once it
    runs, for packets of at most xsk_mtu.
    port: which of both it sends by at first; without sockets it cannot start with "af_xdp", and
    with "tap" goes on without them, and says why (no_xsk).
    """

    ifindex: int
    name: str
    slot: int
    queues: int
    mac: bytes
    mtu: int
    bare: bool = False
    xsk: bool = False
    xsk_mtu: int = 0
    no_xsk: str = ""
    port: str = "tap"


@dataclass(frozen=True)
class StackSpec:
    """One process of a user stack. Descriptors are the Resource Director's; -1 for a map means that
    no XDP program is in use.

    options: what else the policy sets, by the names of C's members in struct dmm_engine_config or
    its dmm_core_config; a word is an enumerator (syn_cookies "auto": DMM_SYN_COOKIES_AUTO), or a
    text. memory_bytes and max_connections are this process's share.
    process counts from 0. Every process has two TAP devices for each NIC, for the inner leg and for
    the outer one; process 0 may have AF_XDP sockets besides. leave_sums: in copy mode, too, they
    leave checksums to what takes their frames, as with zero-copy where the driver has that.
    plugins: what congestion and transport name, unless that is built in.
    """

    instance: str
    name: str
    stack_id: int
    k: int
    device: str
    nics: Sequence[NicSpec]
    xsks_fd: int
    run_dir: Path
    netns_fd: int
    congestion: str = ""
    transport: str = "tcp"
    plugins: Sequence[Plugin] = ()
    options: Mapping[str, int | str] = field(default_factory=dict)
    memory_bytes: int = 0
    max_connections: int = 100_000
    process: int = 0
    leave_sums: bool = False
    contract: int = CONTRACT
    command: Sequence[str] = ()  # what is run; empty: dmm_ebpf/userstack/process.py
    cgroup: str = ""  # directory of the process's own cgroup; empty: it gets none

    @property
    def payload_bytes(self) -> int:
        """How much payload the core may hold."""
        return self.memory_bytes or _DEFAULT_MEMORY_BYTES

    @property
    def memory_limit_bytes(self) -> int:
        """More than the process ever needs: the limit of its cgroup."""
        queues = sum(nic.queues for nic in self.nics if nic.xsk)
        return (
            self.payload_bytes
            + self.max_connections * _CONNECTION_BYTES
            + queues * _QUEUE_BYTES
            + len(self.nics) * _DEVICE_BYTES
            + _PROGRAM_BYTES
        )

    @property
    def label(self) -> str:
        """See process_label()."""
        return process_label(self.name, self.process)

    def inner_device(self, nic: NicSpec) -> str:
        """Name of the TAP device by which the process has its inner leg on nic."""
        return stackdevice.inner(self.device, nic.slot)

    def outer_device(self, nic: NicSpec) -> str:
        """Name of the TAP device by which frames of nic come, but for those that
        AF_XDP sockets take.
        """
        return stackdevice.outer(self.device, nic.slot)

    def devices(self) -> list[str]:
        """Names of the devices that the process makes."""
        return [
            *(self.inner_device(nic) for nic in self.nics),
            *(self.outer_device(nic) for nic in self.nics),
        ]

    @property
    def control_path(self) -> Path:
        """The stack process's socket."""
        return control_path(Path(self.run_dir), self.label)

    @property
    def pid_path(self) -> Path:
        """Its pid and start time."""
        return pid_path(Path(self.run_dir), self.label)

    @property
    def log_path(self) -> Path:
        """What it writes to stderr."""
        return Path(self.run_dir) / f"stack-{self.label}.log"

    def to_json(self) -> str:
        """For the process."""
        raw = asdict(self) | {"run_dir": str(self.run_dir)}
        raw["nics"] = [asdict(nic) | {"mac": nic.mac.hex()} for nic in self.nics]
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> StackSpec:
        """What to_json() wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["nics"] = [NicSpec(**(nic | {"mac": bytes.fromhex(nic["mac"])})) for nic in raw["nics"]]
        raw["run_dir"] = Path(raw["run_dir"])
        raw["command"] = tuple(raw["command"])
        raw["plugins"] = tuple(Plugin(**one) for one in raw["plugins"])
        return cls(**raw)

    def inherited(self) -> list[int]:
        """The descriptors that the process needs."""
        return [fd for fd in (self.netns_fd, self.xsks_fd) if fd >= 0]
