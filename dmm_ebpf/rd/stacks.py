# SPDX-License-Identifier: Apache-2.0
"""The user stacks of an instance: from a name in the policy to a process that packets reach, and back.

Owns, for each user stack: its number k in the namespace (mark, rule and table), the XDP program on its NICs, its
process (through StackSupervisor), the routing mirror that leads to its TUN device, and its line in stack_state[].

Invariant: stack_state[id].up is 1 only while everything a flow needs is in place. It is set last and cleared first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import sockdiag, tcingress, tuning
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.hal.routes import RouteMirror, StackNumbers
from dmm_ebpf.loader import Attached, Map
from dmm_ebpf.rd import rundir
from dmm_ebpf.rd.flows import pair_text
from dmm_ebpf.rd.model import UserStack
from dmm_ebpf.rd.rundir import RunDir, StackState, State
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, StackSupervisor

C = abi.C
MARK_BASE = 0x0DD00000
MARK_MASK = 0x0FF00000
MARK_SHIFT = 20
MAX_K = 34  # marks 0xdd .. 0xfe fit the mask's eight bits
FWMARK_ACCEPT = "net/ipv4/tcp_fwmark_accept"

log = logging.getLogger("dmm-ebpf")


def mark_of(k: int) -> int:
    """The SO_MARK bits of stack number k."""
    return MARK_BASE + (k << MARK_SHIFT)


def free_k(used: Collection[int]) -> int:
    """The lowest stack number that nobody in the namespace uses."""
    for k in range(MAX_K):
        if k not in used:
            return k
    raise ConflictError(
        "number another user stack",
        why=f"all {MAX_K} marks under mask {MARK_MASK:#x} are taken in this network namespace",
        hint="detach an instance or use fewer user stacks",
    )


@dataclass
class _Stack:
    state: StackState
    config: UserStack
    nics: list[NicSpec]
    supervisor: StackSupervisor
    mirror: RouteMirror | None = None
    draining: bool = False
    status: str = "starting"
    reason: str = ""
    pid: int = 0
    restarts: int = 0


class StackManager:
    """Starts, follows and stops the user stacks of one instance. Lives in the RD's event loop and namespace."""

    def __init__(
        self,
        attached: Attached,
        run: RunDir,
        state: State,
        netns: NetNS,
        notify: Callable[[dict[str, Any]], None],
    ) -> None:
        self._attached = attached
        self._run = run
        self._state = state
        self._netns = netns
        self._notify = notify
        self._stacks: dict[str, _Stack] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}

    # -- what the policy compiler and the listings ask --

    def marks(self, names: Iterable[str]) -> dict[str, int]:
        """The marks of user stacks by name, numbering those that have none yet."""
        names = list(names)
        with rundir.host_lock():
            used = {
                s.k
                for st in rundir.all_states()
                if st.netns_inode == self._state.netns_inode and st.instance != self._state.instance
                for s in st.stacks
            }
            used |= {s.k for s in self._state.stacks} | StackNumbers.in_use()
            known = {s.name: s for s in self._state.stacks}
            for name in names:
                if name not in known:
                    k = free_k(used)
                    used.add(k)
                    known[name] = StackState(
                        name=name, stack_id=0, k=k, tun=StackNumbers(k, MARK_BASE, MARK_MASK).tun, nics=[]
                    )
                    self._state.stacks.append(known[name])
            self._run.save(self._state)
        return {name: mark_of(known[name].k) for name in names}

    def describe(self, name: str) -> dict[str, Any]:
        """State of a user stack for `dmm-ebpf stacks`; a stack nobody routes to is "off"."""
        s = self._stacks.get(name)
        if s is None:
            return {"state": "off", "reason": "no route leads to it", "pid": None, "restarts": 0, "nics": []}
        return {
            "state": "draining" if s.draining and s.status == "up" else s.status,
            "reason": s.reason,
            "pid": s.pid or None,
            "restarts": s.restarts,
            "tun": s.state.tun,
            "mark": f"{mark_of(s.state.k):#x}/{MARK_MASK:#x}",
            "nics": [n.name for n in s.nics],
        }

    def nics(self) -> list[dict[str, Any]]:
        """The NICs that have our XDP program, for `dmm-ebpf status`."""
        return [
            {"ifname": n.name, "ifindex": n.ifindex, "mode": "native", "stack": name}
            for name, s in self._stacks.items()
            for n in s.nics
        ]

    def is_up(self, name: str) -> bool:
        """True if new flows reach the stack."""
        s = self._stacks.get(name)
        return s is not None and s.status == "up"

    def names(self) -> list[str]:
        """User stacks that exist here, draining ones included."""
        return list(self._stacks)

    async def query_all(self, method: str) -> dict[str, Any]:
        """method asked of every stack that is up; a stack that does not answer is left out."""
        up = [(name, s) for name, s in self._stacks.items() if s.status == "up"]
        answers = await asyncio.gather(*(s.supervisor.query(method) for _, s in up), return_exceptions=True)
        return {name: a for (name, _), a in zip(up, answers, strict=True) if not isinstance(a, BaseException)}

    async def core_counters(self) -> dict[str, dict[str, int]]:
        """What the user stacks that are up have counted since their process began: enum dmm_core_counter by name."""
        return {
            name: {k.removeprefix("core_"): int(v) for k, v in stats.items() if k.startswith("core_")}
            for name, stats in (await self.query_all("stats")).items()
        }

    # -- life --

    async def ensure(self, wanted: Mapping[str, tuple[int, UserStack]]) -> list[str]:
        """Start what is wanted (name -> id, config) and not there, and wait until it serves.

        All or nothing: if one cannot start, those started by this call are stopped again and its DmmError is raised.
        Returns the names that were started.
        """
        started: list[str] = []
        try:
            for name, (stack_id, config) in wanted.items():
                present = self._stacks.get(name)
                if present is not None:
                    await self._keep(present, config)
                    continue
                started.append(name)
                await self._start(name, stack_id, config)
        except BaseException:
            for name in reversed(started):
                await self._stop(name)
            raise
        return started

    async def drop(self, names: Iterable[str]) -> None:
        """Stop stacks at once (those that ensure() has just started for a policy that was then refused)."""
        for name in names:
            await self._stop(name)

    def retire(self, keep: Collection[str]) -> None:
        """Let every other stack serve its open flows to their end, and then stop it."""
        for name, s in self._stacks.items():
            if name in keep or s.draining:
                continue
            s.draining = True
            self._drains[name] = asyncio.get_running_loop().create_task(self._drain(name))

    async def close(self) -> list[str]:
        """Stop everything; flows of the user stacks are reset. Returns what was removed, as text."""
        for task in self._drains.values():
            task.cancel()
        removed = []
        for name in list(self._stacks):
            await self._stop(name)
            removed.append(f"stack {name}")
        for left in list(self._state.stacks):
            self._forget(left)
        removed += restore_sysctls(self._state)
        self._run.save(self._state)
        return removed

    async def _keep(self, s: _Stack, config: UserStack) -> None:
        s.draining = False
        task = self._drains.pop(s.state.name, None)
        if task is not None:
            task.cancel()
        if config != s.config:
            s.config = config
            s.supervisor.spec = self._spec(s.state, config, s.nics)
            with contextlib.suppress(DmmError, OSError):
                await s.supervisor.query(
                    "configure", congestion=config.congestion, syn_cookies=config.syn_cookies
                )

    async def _start(self, name: str, stack_id: int, config: UserStack) -> None:
        record = next(r for r in self._state.stacks if r.name == name)
        record.stack_id = stack_id
        nics = self._nics_of(config)
        record.nics = [n.name for n in nics]
        self._run.save(self._state)
        self._set_up(stack_id, up=False)
        spec = self._spec(record, config, nics)
        supervisor = StackSupervisor(
            spec,
            on_up=lambda info: self._on_up(name, info),
            on_down=lambda reason: self._on_down(name, reason),
        )
        self._stacks[name] = _Stack(record, config, nics, supervisor)
        await asyncio.to_thread(self._attach_nics, record, nics)
        if record.pid and await supervisor.adopt(record.pid, record.start_time):
            return
        await supervisor.start()

    def _nics_of(self, config: UserStack) -> list[NicSpec]:
        specs = []
        for info in hal_nic.serving_nics(list(config.devices) or None):
            taken = next((s for s in self._stacks.values() if any(n.name == info.name for n in s.nics)), None)
            if taken is not None:
                raise ConflictError(
                    f"serve {info.name} with one more user stack",
                    why=f"stack {taken.state.name} holds its queues, and a queue has one AF_XDP UMEM",
                    hint="give each user stack devices of its own",
                )
            slot = self._state.nics.setdefault(info.name, _free_slot(self._state.nics))
            specs.append(NicSpec(info.ifindex, info.name, slot, info.rx_queues, info.mac, info.mtu))
        return specs

    def _spec(self, record: StackState, config: UserStack, nics: list[NicSpec]) -> StackSpec:
        maps = self._attached.maps
        return StackSpec(
            instance=self._state.instance,
            name=record.name,
            stack_id=record.stack_id,
            k=record.k,
            mark=mark_of(record.k),
            mark_mask=MARK_MASK,
            tun=record.tun,
            nics=nics,
            xsks_fd=maps["xsks"].fd,
            xdp_flows_fd=maps["xdp_flows"].fd,
            cookie_state_fd=maps["cookie_state"].fd,
            congestion=config.congestion,
            sndbuf_bytes=config.sndbuf_bytes or 0,
            rcvbuf_bytes=config.rcvbuf_bytes or 0,
            memory_bytes=config.memory_bytes or 0,
            syn_cookies=config.syn_cookies,
            run_dir=self._run.path,
            netns_fd=self._netns.fd,
        )

    def _attach_nics(self, record: StackState, nics: list[NicSpec]) -> None:
        for n in nics:
            if self._attached.attach_xdp(n.ifindex, n.name) != "native":
                self._attached.detach_xdp(n.ifindex)
                # Generic XDP runs after GRO: merged packets would not fit an AF_XDP frame and be lost.
                raise KernelFeatureError(
                    f"serve {n.name} with stack {record.name}",
                    why="its driver takes no XDP program at this MTU",
                    hint="use a device with native XDP, or an MTU of at most one page",
                )
            log.info("XDP program on %s for stack %s", n.name, record.name)
            value = abi.pack(abi.new("dmm_nic", slot=n.slot, stack=record.stack_id))
            self._attached.maps["nics"].update(struct.pack("=I", n.ifindex), value)

    def _detach_nics(self, nics: Iterable[NicSpec]) -> None:
        for n in nics:
            self._attached.detach_xdp(n.ifindex)
            self._attached.maps["nics"].delete(struct.pack("=I", n.ifindex))
            self._state.nics.pop(n.name, None)

    def _on_up(self, name: str, info: Mapping[str, Any]) -> None:
        s = self._stacks[name]
        s.pid, s.status, s.reason = int(info["pid"]), "up", ""
        s.state.pid, s.state.start_time = s.pid, int(info["start_time"])
        self._run.save(self._state)
        try:
            self._lead_in(s)
        except (DmmError, OSError) as e:
            s.status, s.reason = "down", str(e)
            raise
        self._set_up(s.state.stack_id, up=True, pid=s.pid)
        log.info("stack %s is up, pid %d, on %s", name, s.pid, ", ".join(n.name for n in s.nics))
        self._notify({"type": "stack", "stack": name, "state": "up", "pid": s.pid})

    def _lead_in(self, s: _Stack) -> None:
        """Everything between an app's socket and the stack's TUN device."""
        numbers = StackNumbers(s.state.k, MARK_BASE, MARK_MASK)
        ifindex = socket.if_nametoindex(s.state.tun)
        tuning.prepare_tun(s.state.tun)
        mark = abi.pack(abi.new("dmm_tun_mark", mark=numbers.mark, mask=MARK_MASK))
        self._attached.maps["tun_marks"].update(struct.pack("=I", ifindex), mark)
        tcingress.attach(ifindex, self._attached.ingress_fd())
        self._want_fwmark_accept()
        if s.mirror is None:
            s.mirror = RouteMirror(numbers, [n.name for n in s.nics])
            asyncio.get_running_loop().add_reader(s.mirror.fileno(), self._mirror_ready, s)
        s.mirror.sync()

    def _mirror_ready(self, s: _Stack) -> None:
        if s.mirror is None:
            return
        try:
            s.mirror.handle_events()
        except (DmmError, OSError) as e:
            log.warning("stack %s: the routing mirror is behind: %s", s.state.name, e)

    def _on_down(self, name: str, reason: str) -> None:
        s = self._stacks[name]
        self._set_up(s.state.stack_id, up=False)
        s.status, s.reason, s.pid = "down", reason, 0
        s.restarts += 1
        s.state.pid = 0
        self._run.save(self._state)
        self._end_flows(s.state)
        if not self._closing(name):
            log.warning("stack %s went down: %s; new flows take its fallback", name, reason)
        self._notify({"type": "stack", "stack": name, "state": "down", "reason": reason})

    def _closing(self, name: str) -> bool:
        return self._stacks[name].status == "stopping"

    def _end_flows(self, record: StackState) -> None:
        gone = end_flows(self._attached.maps["xdp_flows"], record)
        if gone:
            log.info("stack %s: %d flows that it carried are reset", record.name, gone)

    async def _stop(self, name: str) -> None:
        s = self._stacks.get(name)
        if s is None:
            return
        self._set_up(s.state.stack_id, up=False)
        s.status = "stopping"
        await s.supervisor.stop()
        self._end_flows(s.state)
        if s.mirror is not None:
            asyncio.get_running_loop().remove_reader(s.mirror.fileno())
            s.mirror.remove()
            s.mirror.close()
        self._detach_nics(s.nics)
        del self._stacks[name]
        self._drains.pop(name, None)
        self._forget(s.state)
        self._run.save(self._state)

    def _forget(self, record: StackState) -> None:
        StackNumbers(record.k, MARK_BASE, MARK_MASK).remove()
        if record in self._state.stacks:
            self._state.stacks.remove(record)

    async def _drain(self, name: str) -> None:
        while True:
            s = self._stacks[name]
            try:
                stats = await s.supervisor.query("stats")
                if not stats["connections"]:
                    break
            except (DmmError, OSError):
                break
            await asyncio.sleep(1)
        log.info("stack %s has no flows left and is stopped", name)
        self._drains.pop(name, None)
        await self._stop(name)

    def _set_up(self, stack_id: int, *, up: bool, pid: int = 0) -> None:
        value = abi.pack(abi.new("dmm_stack_state", up=int(up), pid=pid))
        self._attached.maps["stack_state"].update(struct.pack("=I", stack_id), value)

    def _want_fwmark_accept(self) -> None:
        """tcp_fwmark_accept makes an accepted socket answer through the stack its SYN came from (ip-sysctl.rst)."""
        if FWMARK_ACCEPT in self._state.sysctls:
            return
        with rundir.host_lock():
            others = [
                st.sysctls[FWMARK_ACCEPT]
                for st in rundir.all_states()
                if st.netns_inode == self._state.netns_inode and FWMARK_ACCEPT in st.sysctls
            ]
            self._state.sysctls[FWMARK_ACCEPT] = others[0] if others else tuning.read(FWMARK_ACCEPT)
            self._run.save(self._state)
            tuning.write(FWMARK_ACCEPT, "1")


def _free_slot(nics: Mapping[str, int]) -> int:
    used = set(nics.values())
    for slot in range(C.DMM_MAX_NICS):
        if slot not in used:
            return slot
    raise ConflictError("serve one more NIC", why=f"an instance serves {C.DMM_MAX_NICS} at most")


def end_flows(xdp_flows: Map, record: StackState) -> int:
    """Reset what a stack that is gone has carried, and delete its XDP entries; returns how many there were.

    Only sockets whose 5-tuple the stack owned are reset: one with its mark that is not among them was made after the
    stack went, by the main table, and is well.
    """
    owned = set()
    for key, value in xdp_flows.items():
        if abi.unpack("dmm_xdp_flow", value).stack == record.stack_id:
            pair = abi.unpack("dmm_addr_pair", key)
            owned.add(pair_text(pair))
            xdp_flows.delete(key)
    if owned:
        sockdiag.destroy_by_mark(
            mark_of(record.k), MARK_MASK, lambda s: (s.laddr, s.lport, s.raddr, s.rport) in owned
        )
    return len(owned)


def restore_sysctls(state: State) -> list[str]:
    """Give sysctls their values back, unless another instance in the namespace still counts on ours."""
    removed = []
    with rundir.host_lock():
        for path, before in list(state.sysctls.items()):
            shared = any(
                st.netns_inode == state.netns_inode and st.instance != state.instance and path in st.sysctls
                for st in rundir.all_states()
            )
            if not shared and tuning.read(path) != before:
                tuning.write(path, before)
                removed.append(f"sysctl {path.replace('/', '.')} back to {before}")
            del state.sysctls[path]
    return removed
