# SPDX-License-Identifier: Apache-2.0
"""An attached instance on one of two wired hosts, for the tests of links on a NIC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from bpf_lab import netns_cookie

from dmm_ebpf import loader
from lab import Cgroup, Host, Lab


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """Two wired hosts."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    return a, b


@pytest.fixture
def attached(
    pair: tuple[Host, Host], cgroup: Cgroup, instance: Callable[[], str]
) -> Iterator[loader.Attached]:
    """An instance of host a."""
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        made = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(pair[0]))
        stack.callback(made.close)
        yield made
