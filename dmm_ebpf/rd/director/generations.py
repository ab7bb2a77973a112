# SPDX-License-Identifier: Apache-2.0
"""What rules and routes were called in each generation of the policy that an open flow was
decided under: for listings of now, for those without a Resource Director, and for the next one.

Owns what of that stands in state.json: the texts of earlier policies, with what told their routes
files from others. A text is read again when a name of its generation is asked for. Where a routes
file has changed since, the routes of that generation stay numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.liveroutes import Journal
from dmm_ebpf.rd.director.rundir import PolicyText, RunDir, State
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import Labels
from dmm_ebpf.rd.policy.hostnames import HostName
from dmm_ebpf.rd.policy.model import Policy

MOST_TEXTS = 16  # of earlier policies in state.json, which is written whole


class Generations:
    """Of one instance."""

    def __init__(self, state: State) -> None:
        """As state tells of them."""
        self._texts: dict[int, PolicyText] = {}
        self._labels: dict[int, Labels] = {}
        for one in state.earlier:
            self._texts |= dict.fromkeys(one.generations, one)
        if state.generation and state.policy_text is not None:
            self._texts[state.generation] = in_force(state)

    def labels(self, generation: int) -> Labels | None:
        """The names that it has given; None: they are not known any more."""
        if generation not in self._labels and generation in self._texts:
            self._read(self._texts[generation])
        return self._labels.get(generation)

    def read(self) -> None:
        """labels() of all, ahead."""
        for generation in list(self._texts):  # one that cannot be read is taken out
            self.labels(generation)

    def put(self, generation: int, policy: Policy, labels: Labels, path: Path | None) -> None:
        """A generation that is in force now."""
        self._texts[generation] = text_of(policy, path, generation)
        self._labels[generation] = labels

    def again(self, generation: int, before: int) -> None:
        """Another generation of the policy in force: routes beside it have changed."""
        if before in self._texts:
            self._texts[generation] = self._texts[before]
        if before in self._labels:
            self._labels[generation] = self._labels[before]

    def extend(self, since: int, journal: Journal) -> None:
        """All generations of the policy of which since is one."""
        if journal.since <= since <= journal.generation:
            for generation in range(journal.since, journal.generation + 1, 2):
                self.again(generation, since)

    def __len__(self) -> int:
        return len(self._texts)

    def keep(self, used: Collection[int]) -> None:
        """Forget all others."""
        for known in (self._texts, self._labels):
            for generation in set(known) - set(used):
                del known[generation]

    def earlier(self, used: Collection[int]) -> list[PolicyText]:
        """What State.earlier has to be for those in use: the latest, each text once."""
        found: list[PolicyText] = []
        for generation in sorted(set(self._texts) & set(used), reverse=True):
            one = self._texts[generation]
            same = next((other for other in found if _is_same(one, other)), None)
            if same is not None:
                same.generations.append(generation)
            elif len(found) < MOST_TEXTS:
                found.append(replace(one, generations=[generation]))
        return found

    def _read(self, one: PolicyText) -> None:
        """One that cannot be read any more is forgotten."""
        same = [number for number, other in self._texts.items() if _is_same(one, other)]
        labels = None
        with contextlib.suppress(DmmError):
            policy = again(one)
            labels = Labels(policy, has_routes=files_of(policy) == one.files)
        for number in same:
            if labels is None:
                del self._texts[number]
            else:
                self._labels[number] = labels


def _is_same(one: PolicyText, other: PolicyText) -> bool:
    return (one.text, one.path, one.files) == (other.text, other.path, other.files)


def again(one: PolicyText) -> Policy:
    """The policy, read once more. DmmError: it cannot be."""
    base = Path(one.path).parent if one.path else Path("/")
    return policies.parse(one.text, source=one.path or "the policy in force", base=base)


def in_force(state: State) -> PolicyText:
    """What state says of the policy in force."""
    return PolicyText(state.policy_text or "", state.policy, state.policy_files, [state.generation])


def shown(state: State) -> records.policy.PolicyText:
    """The same for `policy show`."""
    told = (state.instance, state.policy, state.policy_text, state.generation)
    return records.policy.PolicyText(*told)


def text_of(policy: Policy, path: Path | None, generation: int) -> PolicyText:
    """A policy, as state.json tells of it; path: its file."""
    return PolicyText(policy.text, str(path) if path else None, files_of(policy), [generation])


def files_of(policy: Policy) -> dict[str, list[int] | None]:
    """What told its routes files from others when they were read."""
    return {
        str(path): None if stamp is None else list(stamp) for path, stamp in policy.files.items()
    }


def after(policy: Policy, path: Path | None, generation: int) -> dict[str, Any]:
    """The members of State that tell of a policy that comes in force."""
    one = text_of(policy, path, generation)
    return {
        "generation": generation,
        "policy": one.path,
        "policy_text": one.text,
        "policy_files": one.files,
        "hosts": hosts_of(policy),
    }


def write(run: RunDir, state: State, then: Mapping[str, Any]) -> None:
    """Write down a state that is to come, by its members. DmmError if it cannot be, and is of
    another policy than what is in force, which stands there already: a take-over needs no room.
    """
    same = all(
        getattr(state, name) == then[name] for name in ("policy", "policy_text", "policy_files")
    )
    (run.keep if same else run.save)(replace(state, **then))


def keep_hosts(run: RunDir, state: State, policy: Policy, unanswered: Mapping[str, float]) -> None:
    """What is known of hostnames, for who takes over. unanswered: see State."""
    hosts = hosts_of(policy)
    if (hosts, unanswered) != (state.hosts, state.unanswered):
        state.hosts, state.unanswered = hosts, dict(unanswered)
        run.keep(state)


def hosts_of(policy: Policy) -> dict[str, list[str]]:
    """The addresses of a policy's hostnames."""
    return {
        str(name): [str(prefix) for prefix in prefixes]
        for name, prefixes in policy.elements.items()
        if isinstance(name, HostName)
    }
