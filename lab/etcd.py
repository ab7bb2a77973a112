# SPDX-License-Identifier: Apache-2.0
"""A real cluster of etcd: members on hosts of the laboratory, killed, started and restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.hosts import Host, kill_group
from lab.waiting import patient, wait_for

CLIENT_PORT, PEER_PORT = 2379, 2380
READY_S = 30.0


class Member(Closing):
    """One etcd, on a host of its own."""

    def __init__(self, host: Host, directory: Path, scheme: str) -> None:
        self.host = host
        self.name = host.name
        self.data = directory / f"etcd-{host.name}"
        self.log = directory / f"etcd-{host.name}.log"
        self.client_url = f"{scheme}://{host.ip4}:{CLIENT_PORT}"
        self.peer_url = f"http://{host.ip4}:{PEER_PORT}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether its process does."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def signal(self, number: int) -> None:
        """A signal: SIGSTOP makes it slow beyond measure."""
        if self.process is not None and self.runs:
            self.process.send_signal(number)

    def close(self) -> None:
        """Killed, with its group."""
        if self.process is not None:
            kill_group(self.process)


class Cluster(Closing):
    """etcd on each of these hosts. options: more of etcd's. tls: CA, certificate and key, PEM."""

    def __init__(
        self,
        hosts: Sequence[Host],
        directory: Path,
        *,
        options: Sequence[str] = (),
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.members = [Member(one, directory, "https" if tls else "http") for one in hosts]
        self.tls = tls
        self._options = list(options)
        self._directory = directory
        self._state = "new"
        self.start()

    def start(self) -> None:
        """Every member that does not run; returns when they serve."""
        for one in self.members:
            if not one.runs:
                self.start_one(one)
        self._state = "existing"
        self.await_quorum()

    def start_one(self, one: Member) -> None:
        """A member, with the data that it had; it need not serve yet."""
        peers = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        argv: list[str | Path] = ["etcd", "--name", one.name, "--data-dir", one.data]
        argv += ["--listen-client-urls", one.client_url, "--advertise-client-urls", one.client_url]
        argv += ["--listen-peer-urls", one.peer_url, "--initial-advertise-peer-urls", one.peer_url]
        argv += ["--initial-cluster", peers, "--initial-cluster-state", self._state]
        argv += ["--heartbeat-interval", "100", "--election-timeout", "1000", *self._options]
        if self.tls:
            ca, cert, key = self.tls
            argv += ["--cert-file", cert, "--key-file", key]
            argv += ["--trusted-ca-file", ca, "--client-cert-auth"]
        with one.log.open("ab") as log:
            one.process = one.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_quorum(self) -> None:
        """Until the cluster answers, as a majority of its members has to for that."""
        wait_for(lambda: self.ctl("get", "none", check=False) is not None, READY_S, "etcd to serve")

    def ctl(
        self, *words: str, check: bool = True, at: Member | None = None, input_text: str = ""
    ) -> str | None:
        """etcdctl(1) on the first host: what it prints; None, without check, if it fails."""
        members = [at] if at else [one for one in self.members if one.runs]
        endpoints = ",".join(one.client_url for one in members)
        argv = ["etcdctl", "--endpoints", endpoints, "--command-timeout", "3s"]
        if self.tls:
            argv += ["--cacert", str(self.tls[0]), "--cert", str(self.tls[1])]
            argv += ["--key", str(self.tls[2])]
        host = members[0].host if members else self.members[0].host
        done = host.run(
            [*argv, *words],
            check=False,
            env=os.environ | {"ETCDCTL_API": "3"},
            input=input_text or None,
        )
        if done.returncode and check:
            raise DmmError(f"run etcdctl {' '.join(words)}", why=done.stderr.strip())
        return None if done.returncode else str(done.stdout)

    def put(self, key: str, value: str) -> None:
        """A key, of any value that etcd takes."""
        self.ctl("put", "--", key, value)

    def place(self, prefix: str = "/dmm") -> str:
        """The cluster as `dmm-ebpf` names it."""
        hosts = ",".join(one.client_url.partition("://")[2] for one in self.members)
        if not self.tls:
            return f"etcd://{hosts}{prefix}"
        ca, cert, key = self.tls
        return f"etcds://{hosts}{prefix}?ca={ca}&cert={cert}&key={key}"

    def save(self, file: Path) -> None:
        """A backup: `etcdctl snapshot save`."""
        self.ctl("snapshot", "save", str(file), at=next(one for one in self.members if one.runs))

    def restore(self, file: Path) -> None:
        """All members begin anew from a backup."""
        peers = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for one in self.members:
            one.kill()
            shutil.rmtree(one.data, ignore_errors=True)
            argv = ["etcdctl", "snapshot", "restore", str(file), "--name", one.name]
            argv += ["--initial-cluster", peers, "--initial-advertise-peer-urls", one.peer_url]
            argv += ["--data-dir", str(one.data)]
            one.host.run(argv, env=os.environ | {"ETCDCTL_API": "3"}, timeout=patient(30))
        self.start()

    def revision(self) -> int:
        """Of the store."""
        said = json.loads(self.ctl("get", "none", "--write-out", "json") or "{}")
        return int(said["header"]["revision"])

    def close(self) -> None:
        """Every member is killed."""
        for one in self.members:
            one.close()
