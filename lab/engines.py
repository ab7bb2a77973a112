# SPDX-License-Identifier: Apache-2.0
"""Real container engines on a host of the laboratory: podman (no daemon), and docker with a daemon
of its own.

Images are made here, of this host's own programs, so nothing is fetched. All that an engine keeps
is in a directory of the test's; its networks are in the laboratory host's namespace, and its
containers' cgroups below one that is given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.cgroups import Cgroup, cgroup2_mount
from lab.hosts import Host, kill_group
from lab.leftengines import Left
from lab.waiting import wait_for

IMAGE = "localhost/dmmlab:1"
APPLETS = ("sh", "sleep", "sha256sum", "cat", "true", "nc", "httpd", "wget")
START_TIMEOUT_S = 60.0

# Limits that a machine without CAP_SYS_RESOURCE may give; runc, since crun has no hybrid hosts.
# Locks in tmp_dir: those in /dev/shm are of all engines of the host, and a new one's first command
# frees them all.
_PODMAN_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "{runtime}"
tmp_dir = "{dir}/tmp"
volume_path = "{dir}/volumes"
[network]
network_config_dir = "{dir}/networks"
"""
_STORAGE_CONF = '[storage]\ndriver = "vfs"\ngraphroot = "{dir}/graph"\nrunroot = "{dir}/run"\n'


def image(tar: Path, programs: Sequence[str] = ("curl",)) -> None:
    """A root file system as a tar: busybox, and programs of this host with the libraries
    that they name.
    """
    with tarfile.open(tar, "w") as archive:
        archive.add(_program("busybox"), "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for program in programs:
            path = _program(program)
            archive.add(path, f"bin/{program}")
            listed = subprocess.run(
                ["ldd", path], capture_output=True, text=True, check=True
            ).stdout
            for library in {word for word in listed.split() if word.startswith("/")}:
                archive.add(Path(library).resolve(), library.lstrip("/"))


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise DmmError(
            f"put {name} into an image", why="it is not in PATH", hint="run tools/bootstrap"
        )
    return Path(found).resolve()


class Engine(Closing):
    """An engine on a host, with an image. env: what its clients need to find it."""

    program: str
    at_once: tuple[str, ...] = ()  # of rm, besides --force

    def __init__(self, host: Host, parent: Cgroup) -> None:
        self.host, self.parent = host, parent
        # Short, since sockets are in it (unix(7): 108 bytes).
        self.directory = directory = Path(tempfile.mkdtemp(prefix="dmmlab-"))
        self.env: dict[str, str] = {}
        self._left = Left(str(directory), parent.relative)
        self._note = self._left.note(host.lab.state)
        try:
            self._begin()
            image(directory / "image.tar")
            self.ask("import", str(directory / "image.tar"), IMAGE)
        except BaseException:
            self.close()
            raise

    def ask(self, *words: str, check: bool = True, timeout: float = 120.0) -> str:
        """One command of its client's; what it prints."""
        done = self.host.run(
            [self.program, *words], env={**os.environ, **self.env}, check=check, timeout=timeout
        )
        return str(done.stdout).strip()

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """A command of its client's that goes on."""
        return self.host.popen([self.program, *words], env={**os.environ, **self.env}, **options)

    def start(self, name: str, *command: str, options: Sequence[str] = ()) -> str:
        """A container in the background, on the engine's bridge; its id."""
        words = [
            "run",
            "--detach",
            "--name",
            name,
            "--cgroup-parent",
            self.parent.relative,
            *options,
            IMAGE,
        ]
        return self.ask(*words, *(command or ("/bin/sleep", "100000")))

    def group(self, number: str) -> str:
        """The cgroup of a container of that id, as rules name it."""
        (found,) = self.parent.path.rglob(f"*{number}*/")
        return f"/{found.relative_to(cgroup2_mount())}"

    def address(self, name: str) -> str:
        """A container's IPv4 address on the bridge."""
        wanted = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.ask("inspect", "--format", wanted, name)

    def close(self) -> None:
        """Removes its containers and all that it has; harmless when repeated."""
        if self.directory.exists():
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                for name in self.ask("ps", "--all", "--quiet", check=False).split():
                    self.ask("rm", "--force", *self.at_once, name, check=False)
            self._end()
        self._left.release()
        self._note.unlink(missing_ok=True)

    @abstractmethod
    def _begin(self) -> None:
        """Makes it ready to be asked."""

    @abstractmethod
    def _end(self) -> None:
        """Undoes that."""


class Podman(Engine):
    """podman with the network backend that is installed (netavark, or CNI)."""

    program = "podman"
    at_once = ("--time", "0")

    def _begin(self) -> None:
        runtime = shutil.which("runc") or "crun"
        for name, text in (("containers.conf", _PODMAN_CONF), ("storage.conf", _STORAGE_CONF)):
            (self.directory / name).write_text(text.format(dir=self.directory, runtime=runtime))
        self.env = {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
        }

    def _end(self) -> None:
        pass


class Docker(Engine):
    """A dockerd of the test's own, with the containerd that it starts."""

    program = "docker"

    _daemon: subprocess.Popen[Any] | None = None

    def _begin(self) -> None:
        socket = self.directory / "docker.sock"
        self.env = {"DOCKER_HOST": f"unix://{socket}"}
        argv: list[str | Path] = [
            "dockerd",
            "--host",
            f"unix://{socket}",
            "--pidfile",
            self.directory / "pid",
            "--storage-driver",
            "vfs",
        ]
        argv += ["--data-root", self.directory / "data", "--exec-root", self.directory / "exec"]
        with (self.directory / "log").open("wb") as log:
            self._daemon = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._serves, START_TIMEOUT_S, "dockerd to serve")

    def _serves(self) -> bool:
        if self._daemon is None or self._daemon.poll() is not None:
            said = (self.directory / "log").read_text(errors="replace").splitlines()
            raise DmmError("start dockerd", why=said[-1] if said else "it has ended")
        return (
            self.host.run(
                ["docker", "version"], env={**os.environ, **self.env}, check=False
            ).returncode
            == 0
        )

    def _end(self) -> None:
        if self._daemon is None:
            return
        self._daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._daemon.wait(START_TIMEOUT_S)
        kill_group(self._daemon)
