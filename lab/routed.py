# SPDX-License-Identifier: Apache-2.0
"""A dmm-ebpf instance on a host of the laboratory, started and asked through its command line
like a user would.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmm_ebpf import frames
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.rundir import ROOT
from dmm_ebpf.userstack import control
from lab import commandline
from lab.cgroups import Cgroup
from lab.commandline import CLI
from lab.hosts import Host, kill_group
from lab.waiting import patient, wait_for

READY_TIMEOUT_S = 90.0  # a start compiles and verifies, which a busy machine takes long for
STOP_TIMEOUT_S = 20.0
_counter = itertools.count()


class Routed(Closing):
    """`dmm-ebpf attach` in the foreground on a host, on one cgroup, with a policy;
    detached when closed.

    policy may hold {cgroup}, which becomes the cgroup's path as rules name it.
    """

    options: tuple[str, ...] = ()  # of attach, besides

    def __init__(
        self,
        host: Host,
        cgroup: Cgroup,
        policy: str | None,
        directory: Path,
        *,
        instance: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """options: more words for `dmm-ebpf attach`."""
        self.options = (*self.options, *options)
        self.host = host
        self.cgroup = cgroup
        self.instance = instance or f"t{os.getpid()}x{next(_counter)}r"
        directory.mkdir(parents=True, exist_ok=True)
        self.policy_file = directory / f"{self.instance}.toml"
        self.log = directory / f"{self.instance}.log"
        self._has_policy = policy is not None
        if policy is not None:
            self.write_policy(policy)
        self.process = self._start()

    def write_policy(self, policy: str) -> None:
        """Replace the policy file at once, as an editor does."""
        new = self.policy_file.with_suffix(".new")
        new.write_text(policy.replace("{cgroup}", self.cgroup.relative))
        new.rename(self.policy_file)

    def _start(self) -> subprocess.Popen[Any]:
        argv = [
            *self._command(),
            "attach",
            "--instance",
            self.instance,
            *self._where(),
            *self.options,
        ]
        if self._has_policy:
            argv += ["--policy", str(self.policy_file)]
        with self.log.open("ab") as log:
            process = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(
                lambda: process.poll() is not None or "is attached" in self.log.read_text(),
                READY_TIMEOUT_S,
                f"instance {self.instance} to be attached",
            )
            if process.poll() is not None:
                raise DmmError("attach", why=self.log.read_text().strip().splitlines()[-1])
        except BaseException:
            kill_group(process)
            self.detach()
            raise
        return process

    def _command(self) -> tuple[str, ...]:
        """What the Resource Director is started by."""
        return CLI

    def _where(self) -> tuple[str, ...]:
        """What it is attached to."""
        return ("--cgroup", str(self.cgroup.path))

    def restart(self) -> None:
        """Attach again, after the Resource Director was killed."""
        self.log.write_text("")
        self.process = self._start()

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One dmm-ebpf command, anywhere."""
        done = commandline.run(words, 60)
        if check and done.returncode:
            raise DmmError(f"run dmm-ebpf {' '.join(words)}", why=done.stderr.strip())
        return done

    def ask(self, *words: str) -> Any:
        """What a listing says, from its JSON, for this instance."""
        return json.loads(self.cli(*words, "--instance", self.instance, "--json").stdout)

    def stack(self, name: str) -> dict[str, Any]:
        """One stack's line of `dmm-ebpf stacks`."""
        return next(s for s in self.ask("stacks") if s["name"] == name)

    def flows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Open flows whose fields have these values."""
        return [f for f in self.ask("flows") if all(f[k] == v for k, v in wanted.items())]

    def ask_stack(self, name: str, method: str = "stats") -> Any:
        """What a user stack's process itself answers: "stats", "connections", "ping"."""
        return ask_process(ROOT / self.instance / f"stack-{name}.sock", method)

    def apply(
        self, policy: str | None = None, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Write the policy file, if there is another policy, and apply it."""
        if policy is not None:
            self.write_policy(policy)
        words = ("policy", "apply", str(self.policy_file), "--instance", self.instance)
        return self.cli(*words, check=check)

    def kill_director(self) -> None:
        """SIGKILL for the Resource Director alone."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Detach: SIGINT if the Resource Director lives, `dmm-ebpf detach` if not.
        Harmless when repeated.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(patient(STOP_TIMEOUT_S))
            except subprocess.TimeoutExpired as error:
                raise DmmError("stop the Resource Director", why=self._last_words()) from error
            finally:
                if self.process.returncode:  # else it has left nothing, as it says
                    self.detach()
        else:
            self.detach()

    def _last_words(self) -> str:
        """Kill a Resource Director that does not end; what its threads were at, and its
        log before that.
        """
        self.process.send_signal(signal.SIGABRT)  # Python's faulthandler prints them
        try:
            self.process.wait(patient(5))
        except subprocess.TimeoutExpired:
            self.kill_director()
        return f"it did not end in {patient(STOP_TIMEOUT_S):g} s: {self.log.read_text()[-6000:]}"

    def detach(self) -> None:
        """`dmm-ebpf detach`, whatever is there."""
        self.cli("detach", "--instance", self.instance, check=False)


def ask_process(path: Path, method: str) -> Any:
    """What a stack process answers on its control socket. DmmError when it refuses, OSError when
    it is not there.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patient(STOP_TIMEOUT_S))
        sock.connect(str(path))
        sock.sendall(frames.encode(frames.request(1, method, {})))
        length = control.ANSWERS.length(_exactly(sock, frames.LENGTH.size))
        answer = control.ANSWERS.decode(_exactly(sock, length))
    if not answer["ok"]:
        raise DmmError(f"ask {path.name} for {method}", why=str(answer["error"]))
    return answer["result"]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the stack process hung up")
        data += part
    return bytes(data)
