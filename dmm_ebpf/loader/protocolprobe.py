# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel lets a BPF program turn a TCP socket into one of MPTCP, found by trying: a
program that changes nothing is loaded for update_socket_protocol(), and closed again.
"""

from __future__ import annotations

import errno
import os

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import tuning
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import bpf, explain, link
from dmm_ebpf.loader.bpf import AttachType, ProgType

FUNCTION = "update_socket_protocol"
SWITCH = "net/mptcp/enabled"
MEMBERS = {
    "DMM_TASK_NSPROXY": ("task_struct", "nsproxy"),
    "DMM_NSPROXY_NET": ("nsproxy", "net_ns"),
    "DMM_NET_COOKIE": ("net", "net_cookie"),
}
_CAP_PERFMON = 38
_CAP_SYS_ADMIN = 21
_CAP_BPF = 39
_RETURN_0 = link.INSN.pack(0xB7, 0, 0, 0) + link.INSN.pack(0x95, 0, 0, 0)


def macros() -> list[str]:
    """For bpf/protocol.h: where the kernel has the namespace of who calls; none where no program
    may do it.
    """
    if _refusal():
        return []
    try:
        offsets = bpf.kernel_offsets(list(MEMBERS.values()))
    except OSError:
        return []
    return [f"{name}={at}" for name, at in zip(MEMBERS, offsets, strict=True)]


def why_not() -> str | Unknown:
    """Why no policy can turn sockets of the thread's network namespace into MPTCP's, as the rest of
    "no: ..."; empty: one can.
    """
    return switched_off() or _refusal()


def switched_off() -> str:
    """Why this network namespace has no sockets of MPTCP's; empty: it has."""
    try:
        off = tuning.read(SWITCH) == "0"
    except DmmError:
        return "this kernel has no MPTCP (CONFIG_MPTCP)"
    return "MPTCP is switched off in the network namespace (net.mptcp.enabled)" if off else ""


def _refusal() -> str | Unknown:
    try:
        function = bpf.kernel_function(FUNCTION)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"this kernel has no {FUNCTION}(), which Linux 6.6 and later have"
        return "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    refused = _trial(AttachType.MODIFY_RETURN, function)
    if refused is None:
        return ""
    if refused.errno == errno.EPERM:
        return _not_permitted()
    log = refused.log.splitlines() if isinstance(refused, bpf.VerifierError) else []
    said = log[0] if log else str(refused.strerror)
    return f"this kernel takes no program for {FUNCTION}() ({said})"


def _not_permitted() -> str | Unknown:
    """Whether it is this process that may not, or no program that may be there."""
    have = explain.capabilities()
    if not have >> _CAP_SYS_ADMIN & 1 and not (have >> _CAP_BPF & have >> _CAP_PERFMON & 1):
        return Unknown("only root may load BPF programs (CAP_BPF and CAP_PERFMON)")
    try:
        other = _trial(AttachType.TRACE_ITER, bpf.kernel_function("bpf_iter_tcp"))
    except OSError as error:
        other = error
    if other is None:
        return (
            "this kernel lets no BPF program be put on a function of its own: "
            "bpf(2) answers EPERM to root, and takes other programs for tracing"
        )
    return Unknown("bpf(2) answers EPERM to root for every program for tracing")


def _trial(attach_type: AttachType, function: int) -> OSError | None:
    """Why a program that does nothing is refused there; None: it is not."""
    try:
        fd, _ = bpf.prog_verify(
            "dmm_probe",
            ProgType.TRACING,
            _RETURN_0,
            attach_type=attach_type,
            attach_btf_id=function,
        )
    except OSError as error:
        return error
    os.close(fd)
    return None
