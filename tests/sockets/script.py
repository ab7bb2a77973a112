# SPDX-License-Identifier: Apache-2.0
"""What a script is made of: two sides that do socket calls and note what each saw.

A script is a class. Its docstring says what it asks, client() and server() are its two programs,
which run in processes of their own on two hosts, at once. Whatever a side notes is compared between
a run through a stack and a run without: values, names of errors, digests of bytes, sets of events,
and times as classes only. So a note must hold nothing of
the run itself: no port that the kernel chose, no time, no count that depends on who was faster.

Everything here runs under /usr/bin/python3 as it is and knows nothing of dmm-ebpf.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, ClassVar

IP4, IP6 = "ip4", "ip6"
FAMILIES = (IP4, IP6)
CLIENT, SERVER = "client", "server"
SIDES = (CLIENT, SERVER)
PORTS = 8  # each run has so many ports for itself, alike on both hosts
STUCK_S = 30.0  # a side that takes so long hangs, and that is what it is compared by
WITHIN_S = 12.0  # what has to happen happens within this
SETTLING = 5  # looks at an error that may have more to come
PATIENCE = float(os.environ.get("DMM_LAB_PATIENCE", "1"))
PR_SET_PDEATHSIG = 1

SCRIPTS: dict[str, type[Script]] = {}


class Stuck(BaseException):
    """A side does not come to its end. No Exception, so that no script takes it for an error
    of its own.
    """


class Alone(Exception):  # noqa: N818  (it is no error of this side)
    """The other side has ended, or does not come."""


def noise(size: int, seed: int = 1) -> bytes:
    """size bytes that the seed decides."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    """What stands for bytes in a note: the bytes themselves if they are few, else how many and
    the hash's beginning.
    """
    if len(data) <= 40:
        return repr(bytes(data))
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()[:16]}"


def name_of(error: BaseException) -> str:
    """An errno by its name; another exception by its type."""
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number or 0, type(error).__name__)


def attempt(call: Callable[..., Any], *args: Any) -> Any:
    """What a call gives, or the name of the error that it ended with."""
    try:
        return call(*args)
    except OSError as error:
        return name_of(error)


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes by their digest, sets sorted, other things by their text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return digest(bytes(value))
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def poll_names(mask: int) -> str:
    """Events of poll(2) or epoll(7), by their names."""
    names = {1: "IN", 2: "PRI", 4: "OUT", 8: "ERR", 0x10: "HUP", 0x2000: "RDHUP"}
    return "|".join(name for bit, name in names.items() if mask & bit) or "none"


def events(sock: socket.socket, mask: int, timeout_s: float = 0.0) -> str:
    """What poll(2) says of a socket within that time."""
    poller = select.poll()
    poller.register(sock, mask)
    found = poller.poll(timeout_s * 1000 * PATIENCE)
    # The kernel sets the error first, then CLOSE, then what makes an end of input (tcp_reset()
    # and tcp_done()), so who looks meanwhile sees a part of it.
    whole = select.POLLERR | select.POLLHUP | (mask & select.POLLIN)
    for _ in range(SETTLING):
        if not found or not found[0][1] & select.POLLERR or found[0][1] & whole == whole:
            break
        select.select([], [], [], 0.01)
        found = poller.poll(0)
    return poll_names(found[0][1]) if found else "none"


def eventually(look: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """The first true value of look() within that time, else its last one."""
    deadline = time.monotonic() + within_s * PATIENCE
    while not (found := look()) and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    return found


def read_all(sock: socket.socket, chunk: int = 1 << 16) -> tuple[str, str]:
    """Reads to the end: the bytes' digest, and "end" or the error's name."""
    data = bytearray()
    while True:
        try:
            part = sock.recv(chunk)
        except OSError as error:
            return digest(bytes(data)), name_of(error)
        if not part:
            return digest(bytes(data)), "end"
        data += part


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """size bytes, fewer when the peer ends first."""
    data = bytearray()
    while len(data) < size and (part := sock.recv(min(1 << 16, size - len(data)))):
        data += part
    return bytes(data)


def linger(sock: socket.socket, seconds: int) -> None:
    """SO_LINGER on; 0 s makes close() a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


def so_error(sock: socket.socket) -> str:
    """SO_ERROR by its name, "" for none; reading takes it away."""
    return errno.errorcode.get(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "")


def tcp_state(sock: socket.socket) -> str:
    """The state as TCP_INFO has it."""
    names = "? ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING"
    return names.split()[sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]]


def how_long(began: float, least_s: float) -> str:
    """A time as a class: whether it was too short, or more than 8 s too long."""
    took = time.monotonic() - began
    if took < least_s * 0.9:
        return f"too soon for {least_s:g} s"
    return f"{least_s:g} s" if took < least_s + 8 * PATIENCE else f"too late for {least_s:g} s"


class Script:
    """One side of a script. Subclasses are the scripts, in modules of the package topics.

    carried: sides where the stack gets a flow of it, if that side is routed; None: the run's ports
    cannot tell that.
    families: those that it is run with. seconds: how long a side may take.
    """

    carried: ClassVar[tuple[str, ...] | None] = SIDES
    families: ClassVar[tuple[str, ...]] = FAMILIES
    seconds: ClassVar[float] = STUCK_S

    def __init_subclass__(cls) -> None:
        if ".topics." in cls.__module__ and not cls.__name__.startswith("_"):
            cls.topic = cls.__module__.rpartition(".")[2]
            key = f"{cls.topic}: {cls.__name__}"
            assert key not in SCRIPTS, f"two scripts are called {key}"
            SCRIPTS[key] = cls

    topic: ClassVar[str] = ""

    def __init__(
        self, side: str, family: str, addresses: dict[str, str], port: int, other: int
    ) -> None:
        """addresses: of each side. port: the first of the run's own ones. other: a descriptor
        to the other side.
        """
        self.is_client = side == CLIENT
        self.family = family
        self.af = socket.AF_INET if family == IP4 else socket.AF_INET6
        self.here = addresses[side]
        self.there = addresses[SERVER if self.is_client else CLIENT]
        self.port = port
        self.notes: list[list[Any]] = []
        self._other = socket.socket(fileno=other)
        self._lines = self._other.makefile("r")
        self._kept: list[Any] = []

    # What a script says.

    def client(self) -> None:
        """The connecting program."""

    def server(self) -> None:
        """The other one."""

    def run(self) -> None:
        """This side, from its beginning to its end."""
        if self.is_client:
            self.client()
        else:
            self.server()

    # What it may use.

    def note(self, name: str, value: Any = "done") -> None:
        """What this side saw; its order counts."""
        self.notes.append([name, plain(value)])

    def meet(self) -> None:
        """Waits until the other side has come as far."""
        self.tell("here")
        self.hear()

    def tell(self, value: Any) -> None:
        """Something that the other side waits for with hear()."""
        with contextlib.suppress(OSError):
            self._other.sendall(json.dumps(value).encode() + b"\n")

    def hear(self) -> Any:
        """What the other side tells."""
        line = self._lines.readline()
        if not line:
            raise Alone
        return json.loads(line)

    def keep(self, thing: Any) -> Any:
        """Holds something until the side's end, when it would be closed otherwise."""
        self._kept.append(thing)
        return thing

    def socket(self) -> socket.socket:
        """A new TCP socket of the run's family."""
        return self.keep(socket.socket(self.af, socket.SOCK_STREAM))

    def at(self, number: int = 0) -> tuple[str, int]:
        """Where the server listens."""
        return (self.there if self.is_client else self.here), self.port + number

    def listen(
        self, number: int = 0, backlog: int = 16, *, address: str | None = None
    ) -> socket.socket:
        """A listener at one of the run's ports."""
        made = self.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.here if address is None else address, self.port + number))
        made.listen(backlog)
        return made

    def connect(self, number: int = 0) -> socket.socket:
        """A connection to the server's port."""
        made = self.socket()
        made.connect(self.at(number))
        return made

    def child(self, work: Callable[[], None]) -> int:
        """A process that does this and ends, at the latest with this one; its id."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            work()
            code = 0
        finally:
            os._exit(code)

    def ended(self, pid: int) -> int:
        """The exit code of a child."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Pair(Script):
    """A script that begins with a connection: to the sides' with_peer() goes its socket."""

    def client(self) -> None:
        self.meet()
        sock = self.socket()
        self.before_connect(sock)
        sock.connect(self.at())
        self.client_with(sock)

    def server(self) -> None:
        listener = self.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.before_listen(listener)
        listener.bind(self.at())
        listener.listen(16)
        self.meet()
        sock, _ = listener.accept()
        self.server_with(self.keep(sock))

    def before_connect(self, sock: socket.socket) -> None:
        """Options of the connecting socket."""

    def before_listen(self, listener: socket.socket) -> None:
        """Options of the listener."""

    def client_with(self, sock: socket.socket) -> None:
        """The connecting program, once it is connected."""

    def server_with(self, sock: socket.socket) -> None:
        """The accepting program, once it has the connection."""


class Greeted(Pair):
    """The server sends a greeting and closes, the client reads it; client_looks() and
    server_looks() come before.
    """

    greeting: ClassVar[bytes] = b"x"

    def client_looks(self, sock: socket.socket) -> None:
        """What the client notes of its socket."""

    def server_looks(self, sock: socket.socket) -> None:
        """What the server notes of its own."""

    def client_with(self, sock: socket.socket) -> None:
        self.client_looks(sock)
        self.note("came", read_all(sock))

    def server_with(self, sock: socket.socket) -> None:
        self.server_looks(sock)
        sock.sendall(self.greeting)
        sock.close()


def observe(script: Script) -> list[list[Any]]:
    """Runs a side; its notes, the last of which says how it ended when that was not by itself."""

    def stuck(number: int, frame: Any) -> None:
        raise Stuck

    signal.signal(signal.SIGALRM, stuck)
    signal.setitimer(signal.ITIMER_REAL, script.seconds * PATIENCE)
    try:
        script.run()
    except Stuck as error:
        script.note("stuck", _where(error))
    except Alone as error:
        script.note("alone", _where(error))
    except Exception as error:
        script.note("ended by", f"{name_of(error)} {_where(error)}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return script.notes


def _where(error: BaseException) -> str:
    """The line of the script that it came from."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if "/topics/" in trace.tb_frame.f_code.co_filename:
            line = f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
