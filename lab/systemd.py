# SPDX-License-Identifier: Apache-2.0
"""A real systemd for tests: the one that runs this machine (`kernelvm --systemd`), or else one that
is booted in namespaces of its own (processes, mounts, IPC, host name), in a cgroup of the caller's.

It has nothing to start but what a test installs: its units are in a directory of their own
(SYSTEMD_UNIT_PATH, systemd(1)), generators and journal are left out.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.cgroups import cgroup2_mount
from lab.waiting import patient, wait_for

if TYPE_CHECKING:
    from lab.cgroups import Cgroup

PROGRAM = Path("/lib/systemd/systemd")
UNITS = Path("/run/guest/units")  # as vm/guest/systemd has it
START_TIMEOUT_S = 30.0
NAMESPACES = ("--pid", "--mount", "--ipc", "--uts")
# A hierarchy of cgroup v2 alone, also where the host has v1 beside it, and what tells systemd that
# it is no machine's.
BOOT = """
set -e
mount --make-rprivate /
netns=$(mktemp -d)
mount --rbind /run/netns "$netns"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/guest/units /run/guest/none /run/netns /run/lock
mount --move "$netns" /run/netns
rmdir "$netns"
mount -t proc proc /proc
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env container=lab sh "$0" "$1"
"""


def is_first_process() -> bool:
    """Whether systemd has booted this machine."""
    return Path("/proc/1/comm").read_text().strip() == "systemd"


class Systemd(Closing):
    """systemd, and what a test has made of it; close() stops and removes that."""

    def __init__(self, cgroup: Cgroup, log: Path) -> None:
        """cgroup: where one is booted, if none is there; log: what it says then."""
        self._installed: list[Path] = []
        self._enter: list[str] = []
        self.files = Path("/")  # what systemd has for its root
        self._process: subprocess.Popen[Any] | None = None
        self._cgroup = cgroup
        if not is_first_process():
            self._boot(log)
        self._slices = self._active_slices()

    def _boot(self, log: Path) -> None:
        start = Path(__file__).parent / "vm" / "guest" / "systemd"
        argv = [
            "unshare",
            "--fork",
            "--kill-child",
            *NAMESPACES,
            "sh",
            "-c",
            BOOT,
            str(start),
            str(PROGRAM),
        ]
        with log.open("ab") as file:
            self._process = self._cgroup.spawn(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        process = self._process
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        init = wait_for(
            lambda: children.read_text().split(), START_TIMEOUT_S, "systemd's namespaces"
        )[0]
        self.files = Path(f"/proc/{init}/root")
        self._enter = ["nsenter", "--target", init, *NAMESPACES, "--"]

        def answers() -> bool:
            if process.poll() is not None:
                raise DmmError("boot systemd in namespaces", why=log.read_text().strip()[-500:])
            done = self.run(["systemctl", "is-active", "lab.target"], check=False)
            return done.stdout.strip() == "active"

        wait_for(answers, START_TIMEOUT_S, "systemd to answer")

    def argv(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs argv where systemd is."""
        return [*self._enter, *map(str, argv)]

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command where systemd is, to its end; DmmError with what it said, if check
        and it failed.
        """
        done = subprocess.run(
            self.argv(argv), capture_output=True, text=True, check=False, timeout=patient(60)
        )
        if check and done.returncode:
            raise DmmError(
                f"run {' '.join(map(str, argv))}", why=done.stderr.strip() or done.stdout.strip()
            )
        return done

    def ctl(self, *words: str, check: bool = True) -> str:
        """What systemctl(1) prints."""
        return self.run(["systemctl", *words], check=check).stdout.strip()

    def write(self, path: Path, text: str) -> None:
        """A file where systemd is."""
        done = subprocess.run(
            self.argv(["sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path]),
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise DmmError(f"write {path}", why=done.stderr.strip())
        self._installed.append(path)

    def install(self, **units: str) -> None:
        """Units by their names, with "_" for the last dot: install(shop_service="[Service]…")."""
        for name, text in units.items():
            self.write(UNITS / re.sub(r"_(?=[a-z]+$)", ".", name), text)
        self.ctl("daemon-reload")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.ctl("show", "--value", f"--property={name}", "--", unit)

    @property
    def root(self) -> str:
        """The cgroup that systemd has for its root, "" if it is the hierarchy's; its units'
        paths begin with it.
        """
        return self.show("-.slice", "ControlGroup").rstrip("/")

    def directory(self, group: str) -> Path:
        """The directory, here, of a cgroup that systemd names."""
        return cgroup2_mount() / group.lstrip("/")

    def _active_slices(self) -> set[str]:
        words = ["list-units", "--type=slice", "--state=active", "--plain", "--no-legend"]
        return {line.split()[0] for line in self.ctl(*words).splitlines()}

    def close(self) -> None:
        """Stops what was installed, and the slices that were made for it, which systemd itself
        keeps; the systemd in namespaces ends with all that is in it.
        """
        if self._process is None:
            units = [path.name for path in self._installed if path.parent == UNITS]
            with contextlib.suppress(DmmError, subprocess.TimeoutExpired):
                self.ctl("stop", *(unit for unit in units if "@." not in unit), check=False)
                self.ctl("stop", *(self._active_slices() - self._slices), check=False)
            for path in self._installed:
                path.unlink(missing_ok=True)
            with contextlib.suppress(DmmError, subprocess.TimeoutExpired):
                self.ctl("daemon-reload", check=False)
        else:
            self._cgroup.kill()
            self._process.wait()
