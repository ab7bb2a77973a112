# SPDX-License-Identifier: Apache-2.0
"""The TCP states of the kernel (include/net/tcp_states.h): number, name, and how people read
and write them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TcpState:
    """One state. name: the kernel's, as --json has it. said: as ss(8) writes it. short:
    in five columns.
    """

    number: int
    name: str
    said: str
    short: str


TCP_STATES = (
    TcpState(1, "ESTABLISHED", "ESTAB", "ESTAB"),
    TcpState(2, "SYN_SENT", "SYN-SENT", "SYN-S"),
    TcpState(3, "SYN_RECV", "SYN-RECV", "SYN-R"),
    TcpState(4, "FIN_WAIT1", "FIN-WAIT-1", "FIN-1"),
    TcpState(5, "FIN_WAIT2", "FIN-WAIT-2", "FIN-2"),
    TcpState(6, "TIME_WAIT", "TIME-WAIT", "TIM-W"),
    TcpState(7, "CLOSE", "CLOSED", "CLOSD"),
    TcpState(8, "CLOSE_WAIT", "CLOSE-WAIT", "CLO-W"),
    TcpState(9, "LAST_ACK", "LAST-ACK", "L-ACK"),
    TcpState(10, "LISTEN", "LISTEN", "LISTE"),
    TcpState(11, "CLOSING", "CLOSING", "CLOSG"),
)

# By the kernel's name, the number that it is told and stored by
NUMBERS = {state.name: state.number for state in TCP_STATES}
