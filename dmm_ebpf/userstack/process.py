# SPDX-License-Identifier: Apache-2.0
"""A stack process: `python -m dmm_ebpf.userstack.process FD INSTANCE STACK DEVICE`, started
by the supervisor.

FD is one end of a stream socket: the spec (JSON, until the other end shuts its direction down)
comes in, one line of JSON goes out when the stack serves, or says why it cannot. After that the
process needs nobody: it goes on when the Resource Director dies, and ends by SIGTERM, by "stop" on
its control socket, or with its devices.

Order: enter the namespace, open devices and sockets, listen, drop every privilege, make the packet
loop's thread, give up every system call that is not needed, say ready, only then read packets.
"""

from __future__ import annotations

import dmm_ebpf.lean  # noqa: F401 - before asyncio is imported

# isort: split

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.errors import ConflictError, DmmError, UsageError
from dmm_ebpf.frames import Message
from dmm_ebpf.kit.bridge import PATIENCE_S, Guarded
from dmm_ebpf.kit.names import Plugin
from dmm_ebpf.pcapng import SNAPLEN_MAX_BYTES
from dmm_ebpf.userstack import answers, controlserver, sandbox, serving
from dmm_ebpf.userstack.engine import Engine
from dmm_ebpf.userstack.faultplans import LEGS
from dmm_ebpf.userstack.spec import StackSpec

_JOIN_S = 5.0
_MAX_MTU = 65535
_MAC_BYTES = 6
_MAX_PPM = 0xFFFFFFFF  # struct dmm_core_config: that many mean nothing at all
_REDUNDANCY = ("redundancy_budget_ppm", "redundancy_residual_ppm", "parity_most_ppm")

log = logging.getLogger("dmm-ebpf.stack")


class StackProcess:
    """Everything that one stack process is."""

    def __init__(self, spec: StackSpec) -> None:
        """Opens all that needs privileges, then has none. Raises DmmError."""
        self.spec = spec
        self.engine = Engine(spec)
        self.listener = controlserver.listen(spec.control_path)
        self._confined: dict[str, Any] = {}
        self._server: controlserver.ControlServer | None = None
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self._stopping = False
        self._faulty: list[Guarded] = []  # plug-ins whose first fault was told
        self._watching: asyncio.TimerHandle | None = None
        self.captured_by = -1  # the descriptor that frames go to

    def confine(self) -> None:
        """Gives up every right, for good. Raises DmmError; the process must then end."""
        time.localtime()  # reads the time zone, which the log needs
        sandbox.limit_resources(self.spec.payload_bytes)
        confinement = sandbox.drop_privileges()
        self._confined = {"own_user": confinement.own_user, "landlock": confinement.landlock}
        self.engine.prepare(self._engine_ended)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        self._server = controlserver.ControlServer(self.listener, self._answer, self._begin)
        sandbox.seal()

    def info(self) -> dict[str, Any]:
        """What the supervisor is told when the stack serves; its form is in answers.py."""
        engine = self.engine
        lost = engine.lost_sockets()
        return self._confined | {
            "pid": os.getpid(),
            "xsk_mtu": engine.xsk_mtu,
            "zerocopy": {str(n): done for n, done in engine.zerocopy.items() if n not in lost},
            "sums": {str(slot): done for slot, done in engine.sums.items()},
            "no_sockets": {str(slot): why for slot, why in (engine.no_sockets | lost).items()},
        }

    async def serve(self) -> int:
        """Runs until stopped; the exit code."""
        self.engine.start()
        if self.spec.plugins:
            self._watch_plugins()
        await self._done.wait()
        if self._server is not None:
            self._server.close()
        self.engine.join(_JOIN_S)
        result = self.engine.result
        self.engine.close()
        if result == 0 and self._stopping:
            return 0
        log.error(
            "the packet loop ended: %s", os.strerror(-(result or 0)) if result else "unexpectedly"
        )
        return 1

    def stop(self) -> None:
        """Resets every connection, sends that, and ends."""
        self._stopping = True
        self.engine.stop(abort=True)

    def _watch_plugins(self) -> None:
        """From now on, ends calls of plug-ins that hang, and says the first fault of each."""

        def look(plugin: Guarded) -> None:
            plugin.look()
            sentence = plugin.faults().sentence
            if sentence and plugin not in self._faulty:
                self._faulty.append(plugin)
                log.error("%s %s: %s", plugin.plugin.seam.noun, plugin.plugin.text, sentence)

        self.engine.plugins.each(look)
        self._watching = self._loop.call_later(PATIENCE_S, self._watch_plugins)

    def _engine_ended(self, _result: int) -> None:
        """In the engine's thread."""
        self._loop.call_soon_threadsafe(self._done.set)

    # -- control --

    def _answer(self, number: int, method: str, params: Message) -> Message:
        return serving.answer(number, method, params, self._call)

    def _call(self, method: str, params: Mapping[str, Any]) -> Any:
        methods: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "ping": lambda _: self.info(),
            "stats": lambda _: self.engine.stats(),
            "connections": self._connections,
            "configure": self._configure,
            "faults": self._faults,
            "plugin": self._plugin,
            "capture": self._capture,
            "stop": lambda _: self.stop(),
        }
        if method not in methods:
            raise serving.unknown(self.spec, method)
        return methods[method](params)

    def _connections(self, params: Mapping[str, Any]) -> list[list[Any]]:
        part = self.engine.connections(**serving.part(params))
        return [[row[name] for name in answers.COLUMNS] for row in part]

    def _configure(self, params: Mapping[str, Any]) -> None:
        if "congestion" in params:
            self.engine.set_congestion(str(params["congestion"]))
        if "transport" in params:
            self.engine.set_transport(str(params["transport"]))
        if "syn_cookies" in params:
            self.engine.set_syn_cookies(str(params["syn_cookies"]))
        if "negotiate" in params:
            self.engine.set_negotiate(str(params["negotiate"]))
        if "latency" in params:
            self.engine.set_latency(
                str(params["latency"]), *(_ppm(params, name) for name in _REDUNDANCY)
            )
        if "ifindex" in params:
            self.engine.set_device(_slot(params), _ifindex(params["ifindex"]), _mac(params["mac"]))
        if "mtu" in params:
            self.engine.set_mtu(_slot(params), _mtu(params["mtu"]))
        if "port" in params:
            self.engine.set_port(_slot(params), str(params["port"]))

    def _faults(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        if params:
            self.engine.set_faults(params)
            log.warning("faults: %s leg, %s: %s", *map(params.get, ("leg", "direction", "rules")))
        return self.engine.faults()

    def _plugin(self, params: Mapping[str, Any]) -> None:
        try:
            plugin = Plugin(**params["plugin"])
            piece, more = str(params["source"]), bool(params["more"])
        except (KeyError, TypeError) as error:
            raise UsageError("load a plug-in", why="the request names none") from error
        self.engine.plugins.take(plugin, piece, more=more)
        if self._watching is None:
            self._watch_plugins()

    def _capture(self, params: Mapping[str, Any]) -> dict[str, Any]:
        capture = _Capture.of(params)
        self._refuse_another_capture()
        return {"interfaces": self.engine.interfaces(), "snaplen_bytes": capture.snaplen_bytes}

    def _refuse_another_capture(self) -> None:
        if self.captured_by >= 0:
            raise ConflictError(f"capture stack {self.spec.label}", why="somebody does already")

    def _begin(self, method: str, params: Message, fd: int) -> controlserver.Stream | None:
        """After the answer to "capture" frames follow on its connection, until that ends."""
        if method != "capture":
            return None
        asked = _Capture.of(params)
        self._refuse_another_capture()  # one that was granted while this answer was on its way
        self.engine.capture(fd, asked.legs, asked.snaplen_bytes)
        self.captured_by = fd
        return _Frames(self, fd)


class _Frames:
    """Those that go to a client; see controlserver.Stream."""

    def __init__(self, process: StackProcess, fd: int) -> None:
        self._process, self._fd = process, fd

    def drain(self) -> int:
        return self._process.engine.capture_drain(self._fd)

    def end(self) -> None:
        self._process.engine.capture_end(self._fd)
        self._process.captured_by = -1


@dataclass(frozen=True)
class _Capture:
    """What a request for one asks for."""

    legs: tuple[str, ...]
    snaplen_bytes: int

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> _Capture:
        """UsageError for what is no leg or no length."""
        legs, snaplen = (
            params.get("legs", list(LEGS)),
            params.get("snaplen_bytes", SNAPLEN_MAX_BYTES),
        )
        if not isinstance(legs, list) or not legs or not all(leg in LEGS for leg in legs):
            raise UsageError(f"capture {legs!r}", why=f"there are the legs {' and '.join(LEGS)}")
        if not isinstance(snaplen, int) or not 0 < snaplen <= SNAPLEN_MAX_BYTES:
            raise UsageError(
                f"capture {snaplen!r} bytes", why=f"1 to {SNAPLEN_MAX_BYTES} of a frame can be"
            )
        return cls(tuple(legs), snaplen)


def _slot(params: Mapping[str, Any]) -> int:
    """Which NIC is meant: its name may have changed since the process was started."""
    slot = params.get("slot")
    if not isinstance(slot, int):
        raise UsageError(f"change NIC {slot!r}", why="it is no number")
    return slot


def _mtu(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= _MAX_MTU:
        raise UsageError(f"set an MTU of {value!r}", why="it is no number of bytes")
    return value


def _ifindex(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise UsageError(f"go on by device number {value!r}", why="it is no number of a device")
    return value


def _mac(value: Any) -> bytes:
    try:
        mac = bytes.fromhex(value)
    except (TypeError, ValueError):
        mac = b""
    if len(mac) != _MAC_BYTES:
        raise UsageError(f"have address {value!r}", why="it is no link-layer address")
    return mac


def _ppm(params: Mapping[str, Any], name: str) -> int:
    value = params.get(name)
    if not isinstance(value, int) or not 0 <= value <= _MAX_PPM:
        raise UsageError(f"set {name} {value!r}", why="it is no number of parts per million")
    return value


async def _run(spec: StackSpec, channel: socket.socket) -> int:
    try:
        process = StackProcess(spec)
        process.confine()
    except DmmError as error:
        serving.say_refused(channel, error)
        return 1
    serving.say_ready(channel, process.info())
    return await process.serve()


def main() -> int:
    """Entry point."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    channel = socket.socket(fileno=int(sys.argv[1]))
    spec = serving.read_spec(channel)
    serving.enter_namespace(spec)
    return asyncio.run(_run(spec, channel))


if __name__ == "__main__":
    # Without taking the interpreter apart, for which the Resource Director would wait: nothing is
    # left to do.
    os._exit(main())
