# SPDX-License-Identifier: Apache-2.0
"""A fleet in the laboratory: hosts that reach each other by a router, and instances that follow the
policy in etcd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.cgroups import Cgroup
from lab.hosts import Host, Lab
from lab.routed import Routed


def hosts(lab: Lab, names: Sequence[str]) -> list[Host]:
    """Hosts of these names, each on a wire of its own to a router."""
    router = lab.host("router")
    made = []
    for name in names:
        made.append(lab.host(name))
        lab.wire(made[-1], router)
    router.sysctl("net.ipv4.ip_forward", 1)
    return made


class Following(Routed):
    """`dmm-ebpf attach --policy etcd://...` on a host, whose name in the fleet is the host's."""

    def __init__(
        self,
        host: Host,
        cgroup: Cgroup,
        place: str,
        directory: Path,
        *,
        labels: Sequence[str] = (),
        instance: str | None = None,
        name: str | None = None,
    ) -> None:
        self._following = ("--policy", place, "--host", name or host.name)
        options = [*self._following, *_labels(labels)]
        super().__init__(host, cgroup, None, directory, instance=instance, options=options)

    def relabel(self, *labels: str) -> None:
        """Other labels, from when it is restarted."""
        self.options = (*self._following, *_labels(labels))


def _labels(labels: Sequence[str]) -> list[str]:
    return [word for one in labels for word in ("--label", one)]
