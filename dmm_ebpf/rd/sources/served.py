# SPDX-License-Identifier: Apache-2.0
"""What a source asks of the instance whose policy it brings (director/instance.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from dmm_ebpf.rd.adaptive.paths import Paths
    from dmm_ebpf.rd.director.routechange import Changing
    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.flow import Flow, Listener
    from dmm_ebpf.records.stack import StackRow

T = TypeVar("T")


class Named(Protocol):
    """instance: its name; policy: the file in force; cgroup: the one that it is attached to."""

    @property
    def instance(self) -> str: ...
    @property
    def policy(self) -> str | None: ...
    @property
    def cgroup(self) -> str: ...


class Numbering(Protocol):
    def reserve(self, count: int) -> int:
        """The first of so many numbers of routes."""


class Adaptive(Protocol):
    @property
    def sharing(self) -> dict[str, Paths]:
        """What paths are known of each route that is shared."""


class Served(Protocol):
    """An instance, as its source sees it."""

    @property
    def state(self) -> Named: ...
    @property
    def policy(self) -> Policy | None: ...
    @property
    def live(self) -> Numbering: ...
    @property
    def adaptive(self) -> Adaptive: ...

    async def apply(self, new: Policy, path: Path | None) -> int | None:
        """Put it in force, whole or not at all."""

    async def change(self, work: Callable[[Changing], Awaitable[T]]) -> T:
        """What work does with what is in force, while nobody else changes it."""

    async def list_stacks(self) -> list[StackRow]:
        """Every stack of the policy."""

    def list_flows(self) -> AsyncIterator[list[Flow]]:
        """Open flows, page by page."""

    def list_listeners(self) -> Sequence[Listener]:
        """Sockets that listen."""

    def publish(self, make: Callable[[], Any]) -> None:
        """An event, if anybody follows."""
