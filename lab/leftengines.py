# SPDX-License-Identifier: Apache-2.0
"""What a container engine of the laboratory (lab/engines.py) has on this machine besides its
processes: noted in the state of its Lab before it is made, so that it can be taken away when the
engine cannot be asked any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.cgroups import cgroup2_mount, remove_group
from lab.waiting import wait_for

V1 = Path("/sys/fs/cgroup")
_NAMED_NETNS = (Path("/run/netns"), Path("/var/run/netns"))


@dataclass(frozen=True)
class Left:
    """directory: all that the engine keeps; cgroup: of its containers, from the root
    of each hierarchy.
    """

    directory: str
    cgroup: str

    def note(self, state: Path) -> Path:
        """Into the state directory of a Lab; where."""
        path = state / f"engine-{Path(self.directory).name}.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    def remove(self) -> None:
        """Kills its containers, too; harmless when repeated."""
        remove_group(cgroup2_mount() / self.cgroup.lstrip("/"))
        self.release()

    def release(self) -> None:
        """Takes away what it has when no container runs: their network namespaces, its mounts, its
        directory, and cgroups of hierarchies before v2; harmless when repeated.
        """
        directory = Path(self.directory)
        if directory.is_dir():
            for named in self._named_namespaces():
                subprocess.run(["umount", "--lazy", named], check=False, capture_output=True)
                named.unlink(missing_ok=True)
            self._unmount()
            # A container's own cleanup may write there to the last.
            wait_for(lambda: _removed(directory), 10, f"{directory} to be empty")
        for hierarchy in V1.iterdir() if cgroup2_mount() != V1 else ():
            below = hierarchy / self.cgroup.lstrip("/")
            if hierarchy != cgroup2_mount() and below.is_dir():
                for path, _, _ in os.walk(below, topdown=False):
                    Path(path).rmdir()

    def _named_namespaces(self) -> set[Path]:
        """Network namespaces that its containers' OCI configurations name."""
        found = set()
        for config in Path(self.directory).glob("**/config.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):
                said = json.loads(config.read_text()).get("linux", {}).get("namespaces", [])
                found |= {
                    Path(one["path"]) for one in said if one["type"] == "network" and "path" in one
                }
        return {path for path in found if path.parent in _NAMED_NETNS}

    def _unmount(self) -> None:
        """What is mounted in its directory, the last first."""
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        for line in reversed(mounts.splitlines()):
            point = line.split()[4]
            if point.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", point], check=True)


def _removed(directory: Path) -> bool:
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def remove_noted(state: Path) -> None:
    """Those that are noted in the state directory of a Lab whose processes have ended."""
    for path in state.glob("engine-*.json"):
        with contextlib.suppress(ValueError, TypeError):
            Left(**json.loads(path.read_text())).remove()
