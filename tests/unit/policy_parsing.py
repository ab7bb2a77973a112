# SPDX-License-Identifier: Apache-2.0
"""For the tests of policies: a text becomes a policy, or the one sentence that refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse as policy

U = '[stacks.wan]\nkind = "user"\n'
ROUTE = '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "kernel"\n'


def parse(text: str, base: Path = Path("/")) -> policy.Policy:
    return policy.parse(text, source="policy.toml", base=base)


def refusal(text: str, base: Path = Path("/")) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text, base)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert caught.value.exit_code == 2
    return sentence
