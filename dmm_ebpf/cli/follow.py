# SPDX-License-Identifier: Apache-2.0
"""What --policy means: a file, or a fleet's policy in etcd. Imported at every attach, so it imports
nothing for a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.errors import UsageError

if TYPE_CHECKING:
    from dmm_ebpf.rd.sources.follower import Follower

_SCHEMES = ("etcd://", "etcds://")


def policy_of(
    text: str | None, host: str | None, labels: Sequence[str]
) -> tuple[Path | None, Follower | None]:
    """What --policy names: a file, or a fleet's policy, which this host follows by these labels.
    Raises UsageError.
    """
    if text is None or not text.startswith(_SCHEMES):
        if host is not None or labels:
            why = "--host and --label are for a fleet's policy"
            raise UsageError("attach", why=why, hint="name it by --policy etcd://HOST/PREFIX")
        return (None if text is None else Path(text)), None
    from dmm_ebpf.central import place as places
    from dmm_ebpf.rd.sources.follower import follower

    place = places.parse(text)
    if place.tls:
        import ssl  # noqa: F401 - before asyncio, which is imported without it: see lean.py
    return None, follower(place, host, labels)


def refuse_place(what: str, policy: Path | None) -> None:
    """Raises UsageError where a file is expected, and a fleet's policy named."""
    if policy is not None and policy.parts[:1] in {("etcd:",), ("etcds:",)}:
        hint = "use attach, or name a file"
        raise UsageError(what, why="it takes a policy file, not a fleet's policy", hint=hint)
