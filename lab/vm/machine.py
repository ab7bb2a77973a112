# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: qemu is started, the guest is given a command, its output is passed on, its
end is explained.

Everything between qemu and this process goes through socket pairs, and the initramfs through a
memfd: no file, no port and no name is left behind or shared, whatever ends first. Qemu dies with
the process that started it.

The emulator (TCG of qemu 7.2) at times makes a guest's kernel panic without a fault of the
kernel's. Such an end is tried again, a few times; a command that fails is not.
"""

from __future__ import annotations

import base64
import contextlib
import os
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError
from lab.vm.initramfs import busybox, initramfs
from lab.vm.packages import Kernel

QEMU = "qemu-system-x86_64"
# One processor and no AVX2: with more, qemu 7.2 crashes Linux 6.12 often, with these seldom.
CPU = "Haswell,-avx2"
ATTEMPTS = 4
BOOT_TIMEOUT_S = 300.0
CONSOLE_KEPT_BYTES = 1 << 16
# Nothing else of the caller's environment means the same in the guest.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "COLUMNS", "CI")
ENVIRONMENT_PREFIX = "DMM_"
# An emulated machine is some ten times slower, and the host may be busy.
PATIENCE = "20"
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off "
    "nowatchdog rcupdate.rcu_cpu_stall_suppress=1 random.trust_cpu=on"
)
# Of x86, with the zero at its end; the kernel cuts what is longer, without a word
COMMAND_LINE_SIZE = 2048
INSTRUCTION_CLOCK = "shift=0,sleep=on"
PANIC = b"Kernel panic - not syncing"


class GuestTimeoutError(DmmError):
    """Time was up before the command ended."""

    exit_code = 124  # as timeout(1)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@dataclass(frozen=True)
class Options:
    """What a guest is given.

    append: more words for its kernel's command line; console: its console goes to stderr; systemd:
    it is the first process, with nothing to start; counted: its clocks go by the instructions that
    it has executed, a nanosecond each, and by this host's while it is at rest. So it is to itself a
    machine that is not slow, however busy this host is, for half as much work again. output: takes
    what the command writes, as it comes, with 1 for stdout and 2 for stderr.
    """

    memory_mb: int = 2048
    counted: bool = False
    timeout_s: int = 600
    append: str = ""
    console: bool = False
    systemd: bool = False
    output: Callable[[int, bytes], None] = _write_all


@dataclass
class _Attempt:
    """How one boot ended: an exit code, or why there is none; is_emulator tells whose fault that
    was, is_late that time was up.
    """

    exit_code: int | None = None
    why: str = ""
    is_emulator: bool = False
    is_late: bool = False


def run(kernel: Kernel, command: Sequence[str], options: Options) -> int:
    """Runs a command in a guest, from the current directory; its exit code.

    stdout and stderr come out here as they are written. GuestTimeoutError when timeout_s were not
    enough, UsageError for more words than a kernel's command line holds, DmmError when there is no
    qemu, when the guest cannot be started, or when it panics again and again.
    """
    check_host()
    if len(_command_line(options).encode()) >= COMMAND_LINE_SIZE:
        raise UsageError(
            f"give {kernel.release} its command line",
            why=f"with what is appended it is longer than {COMMAND_LINE_SIZE - 1} bytes",
        )
    archive = initramfs(kernel)
    deadline = time.monotonic() + options.timeout_s
    for number in range(1, ATTEMPTS + 1):
        with _Machine(kernel, archive, options) as machine:
            ended = machine.converse(command, deadline)
        if ended.is_late:
            raise GuestTimeoutError(
                f"run {command[0]} under {kernel.release}",
                why=f"{ended.why} within {options.timeout_s} s",
                hint="--timeout gives it longer",
            )
        if ended.exit_code is not None:
            return ended.exit_code
        if not ended.is_emulator:
            break
        again = f"; trying again ({number + 1} of {ATTEMPTS})" if number < ATTEMPTS else ""
        print(
            f"kernelvm: {kernel.release} in the emulator: {ended.why}{again}",
            file=sys.stderr,
            flush=True,
        )
    raise DmmError(f"run {command[0]} under {kernel.release}", why=ended.why)


def check_host() -> None:
    """Raises PrivilegeError or DmmError for what a guest needs of this host and is not there."""
    if os.geteuid():
        raise PrivilegeError(
            "give a guest the files of this host",
            why="only root may read all of them",
            hint="use sudo",
        )
    for program in (QEMU, "setpriv"):
        if not shutil.which(program):
            raise DmmError(
                "boot a guest", why=f"{program} is not in PATH", hint="run tools/bootstrap"
            )
    busybox()
    try:
        Path.cwd()
    except OSError as error:
        raise DmmError(
            "start a command in the current directory", why=error.strerror or "it cannot be read"
        ) from None


class _Machine(Closing):
    """A running qemu and the sockets to it."""

    def __init__(self, kernel: Kernel, archive: bytes, options: Options) -> None:
        self._kernel = kernel
        self._options = options
        self._console = bytearray()
        self._said = bytearray()
        self._control_line = bytearray()
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[str, socket.socket] = {}
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(kernel, archive)
        except BaseException:
            self.close()
            raise

    def _start(self, kernel: Kernel, archive: bytes) -> None:
        with contextlib.ExitStack() as theirs:
            ends: dict[str, int] = {}
            for name in ("control", "stdout", "stderr", "console", "qemu"):
                self._sockets[name], other = socket.socketpair()
                ends[name] = theirs.enter_context(other).fileno()
                self._selector.register(self._sockets[name], selectors.EVENT_READ, name)
            ends["initrd"] = os.memfd_create("initramfs")
            theirs.callback(os.close, ends["initrd"])
            with open(ends["initrd"], "wb", closefd=False) as file:
                file.write(archive)
            self._process = subprocess.Popen(
                # A qemu whose parent was killed must not go on.
                ["setpriv", "--pdeathsig", "KILL", "--", *_qemu_argv(kernel, ends, self._options)],
                stdin=subprocess.DEVNULL,
                stdout=ends["qemu"],
                stderr=ends["qemu"],
                pass_fds=list(ends.values()),
                start_new_session=True,
            )

    def close(self) -> None:
        """Ends qemu, whatever it does."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        for sock in self._sockets.values():
            sock.close()

    def converse(self, command: Sequence[str], deadline: float) -> _Attempt:
        """Passes output on until the command's exit code came, the guest ended without, or
        time is up.
        """
        first = "systemd" if self._options.systemd else ""
        self._sockets["control"].sendall(
            f"{self._kernel.modules}\n{first}\n{_script(command, self._kernel)}\n".encode()
        )
        ended = _Attempt()
        boot_deadline = min(deadline, time.monotonic() + BOOT_TIMEOUT_S)
        is_ready = False
        while self._selector.get_map():
            until = deadline if is_ready else boot_deadline
            events = self._selector.select(max(0.0, until - time.monotonic()))
            if not events and time.monotonic() >= until:
                if time.monotonic() >= deadline:
                    return _Attempt(
                        why="it did not end" if is_ready else "the guest did not start",
                        is_late=True,
                    )
                return _Attempt(why=f"no start within {BOOT_TIMEOUT_S:g} s", is_emulator=True)
            for key, _ in events:
                for line in self._take(key.data):
                    is_ready = is_ready or line == "ready"
                    if line.startswith("exit "):
                        ended.exit_code = int(line.removeprefix("exit "))
        return ended if ended.exit_code is not None else self._explain()

    def _take(self, name: str) -> list[str]:
        """Reads what has come on one socket and passes it on; whole lines, if it is
        the control port's.
        """
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._sockets[name].recv(1 << 16)
        if not data:
            self._selector.unregister(self._sockets[name])
        elif name in ("stdout", "stderr"):
            self._options.output(1 if name == "stdout" else 2, data)
        elif name == "console":
            self._console += data
            del self._console[:-CONSOLE_KEPT_BYTES]
            if self._options.console:
                _write_all(2, data)
        elif name == "qemu":
            self._said += data
        else:
            self._control_line += data
            *lines, rest = bytes(self._control_line).split(b"\n")
            self._control_line = bytearray(rest)
            return [line.decode(errors="replace").strip() for line in lines]
        return []

    def _explain(self) -> _Attempt:
        """Why the guest ended without an exit code."""
        assert self._process
        code = self._process.wait()
        console = bytes(self._console).decode(errors="replace").replace("\r", "").splitlines()
        if PANIC in self._console:
            panic = next(line for line in console if PANIC.decode() in line)
            return _Attempt(
                why=f"the guest's kernel panicked: {panic.partition(']')[2].strip()}",
                is_emulator=True,
            )
        if code < 0:
            return _Attempt(why=f"qemu was ended by signal {-code}", is_emulator=True)
        said = [
            line
            for line in self._said.decode(errors="replace").splitlines()
            if "warning" not in line
        ]
        last = [line.strip() for line in said + console if line.strip()]
        return _Attempt(why=last[-1] if last else "the guest ended without a word")


def _qemu_argv(kernel: Kernel, ends: dict[str, int], options: Options) -> list[str]:
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += [
        "-machine",
        "pc,accel=tcg,usb=off,vmport=off",
        "-cpu",
        CPU,
        "-smp",
        "1",
        "-m",
        str(options.memory_mb),
    ]
    argv += ["-icount", INSTRUCTION_CLOCK] if options.counted else []
    argv += ["-kernel", str(kernel.image), "-initrd", f"/dev/fd/{ends['initrd']}"]
    argv += ["-append", _command_line(options)]
    argv += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
    argv += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-device", "virtio-serial-pci"]
    argv += ["-chardev", f"socket,id=console,fd={ends['console']}", "-serial", "chardev:console"]
    for name in ("control", "stdout", "stderr"):
        argv += ["-chardev", f"socket,id={name},fd={ends[name]}"]
        argv += ["-device", f"virtserialport,chardev={name},name=dmm.{name}"]
    return argv


def _command_line(options: Options) -> str:
    return f"{COMMAND_LINE} {options.append}".strip()


def _script(command: Sequence[str], kernel: Kernel) -> str:
    """What the guest's shell is to run, in one line of base64."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIX)
    }
    name = shlex.quote(command[0])
    passed |= {"DMM_GUEST_KERNEL": kernel.release, "DMM_LAB_PATIENCE": PATIENCE}
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in sorted(passed.items())
    )
    where = str(Path.cwd())
    lost = f"kernelvm: cannot enter {where} under {kernel.release}: the guest has its own /dev, /proc, /run and /sys"
    missing = f"kernelvm: cannot run {command[0]} under {kernel.release}: there is no such command; name one of PATH"
    # 127 as of a shell that finds no command.
    text = (
        f"{exports}"
        f"cd {shlex.quote(where)} 2>/dev/null || {{ echo {shlex.quote(lost)} >&2; exit 1; }}\n"
        f"[ -e {name} ] || command -v {name} >/dev/null || {{ echo {shlex.quote(missing)} >&2; exit 127; }}\n"
        f"exec {shlex.join(command)}\n"
    )
    return base64.b64encode(text.encode()).decode()
