# SPDX-License-Identifier: Apache-2.0
"""Why a connection ended, from its last state and its socket's error."""

from __future__ import annotations

import errno

import pytest

from dmm_ebpf.abi import C
from dmm_ebpf.rd.director.ending import reason

ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK = 1, 2, 4, 5, 8, 9
UNTOLD = C.DMM_ERROR_UNTOLD


@pytest.mark.parametrize(
    ("before", "error", "word"),
    [
        (LAST_ACK, 0, "fin"),
        (FIN_WAIT2, UNTOLD, "fin"),
        (FIN_WAIT1, 0, "reset-by-app"),
        (CLOSE_WAIT, 0, "reset-by-app"),
        (SYN_SENT, 0, "given-up"),
        (CLOSE_WAIT, errno.EPIPE, "reset-by-peer"),
        (FIN_WAIT2, errno.ECONNRESET, "reset-by-peer"),
        (SYN_SENT, errno.EHOSTUNREACH, "unreachable"),
        (LAST_ACK, errno.ETIMEDOUT, "timeout"),
        (ESTABLISHED, errno.EACCES, "EACCES"),
        (ESTABLISHED, UNTOLD, ""),
    ],
)
def test_word(before: int, error: int, word: str) -> None:
    assert reason(before, error, process_gone=False) == word


def test_destroyed() -> None:
    assert reason(ESTABLISHED, errno.ECONNABORTED, process_gone=False) == "aborted"
    assert reason(ESTABLISHED, errno.ECONNABORTED, process_gone=True) == "stack-died"
