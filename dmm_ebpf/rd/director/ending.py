# SPDX-License-Identifier: Apache-2.0
"""Why a TCP connection ended, in a word, from what its socket was in and what it
reports (struct dmm_event).

Where Linux sets sk_err: tcp_reset() in net/ipv4/tcp_input.c, tcp_write_err() in tcp_timer.c,
tcp_abort() in tcp.c (SOCK_DESTROY, as by `ss -K`). A reset that this side sends sets none.
"""

from __future__ import annotations

import errno

from dmm_ebpf.abi import C
from dmm_ebpf.tcpstates import NUMBERS

_ERRORS = {
    errno.ECONNRESET: "reset-by-peer",
    errno.EPIPE: "reset-by-peer",  # after its FIN
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}
_AFTER_ITS_FIN = {NUMBERS[name] for name in ("FIN_WAIT2", "TIME_WAIT", "LAST_ACK", "CLOSING")}


def reason(before: int, error: int, *, process_gone: bool) -> str:
    """before: the socket's state until then. error: an errno, 0 or DMM_ERROR_UNTOLD. process_gone:
    a process of a user stack had it, which takes no flows. Empty: it cannot be told; an errno's
    name where there is no word for it.
    """
    if error == errno.ECONNABORTED:
        return "stack-died" if process_gone else "aborted"
    if error not in {0, C.DMM_ERROR_UNTOLD}:
        return _ERRORS.get(error) or errno.errorcode.get(error, str(error))
    if before in _AFTER_ITS_FIN:
        return "fin"
    if error == C.DMM_ERROR_UNTOLD:
        return ""
    return "given-up" if before == NUMBERS["SYN_SENT"] else "reset-by-app"
