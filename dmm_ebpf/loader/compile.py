# SPDX-License-Identifier: Apache-2.0
"""bpf/dmm.bpf.c to bytecode, by BCC in a child process, with no kernel headers: bpf/compat stands
in for them.

The bytecode refers to maps by their number in spec.MAPS; programs.py puts fds there. It depends on
the sources, on BCC, and on the macros that say what the running kernel has (programs.defines());
nothing else of the kernel goes into it. It is kept in cache.py's folder, so BCC is needed once for
each of these, and not at all where it was kept at install.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError
from dmm_ebpf.loader import cache, programs, protocolprobe
from dmm_ebpf.loader.link import CALLS
from dmm_ebpf.loader.spec import FUNCTIONS, MAPS, STEPS, c_types

COMPILE_SECONDS = 600  # on a slow and busy machine LLVM takes minutes
_NO_BCC = 3
_CHILD = Path(__file__).with_name("bcc_child.py")
_INSN_BYTES = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Sets of macros that hold on any kernel whose own set has them: what is missing costs connect()
# a little time. One without IPsec has no DMM_XFRM.
_ANY_KERNEL = (("DMM_SOCKOPS_CURRENT", "DMM_MPTCP", "DMM_XFRM"), ("DMM_XFRM",), ())

Code = Mapping[str, bytes]
log = logging.getLogger("dmm-ebpf")


class _NoBccError(KernelFeatureError):
    """There is no BCC to compile with."""


def code() -> Code:
    """Program or step name to bytecode (struct bpf_insn, 8 bytes each) for the running kernel."""
    wanted = features()
    try:
        return compile_programs(wanted)
    except _NoBccError as error:
        for fewer in _ANY_KERNEL:
            kept = _kept(fewer) if set(fewer) <= set(wanted) else None
            if kept is not None:
                log.info("BCC is missing, so the BPF programs are those that suit any kernel")
                return kept
        raise KernelFeatureError(error.what, why=error.why, hint=error.hint) from None


def reads_executables() -> bool:
    """Whether the programs that code() gives know which file a process executes: the kernel has BTF
    that tells where it is kept, and they could be compiled for it.
    """
    wanted = features()
    known = any(one.startswith("DMM_EXE_INODE=") for one in wanted)
    return known and (bcc_version() is not None or _kept(wanted) is not None)


def knows_groups() -> bool:
    """Whether the programs that code() gives tell cgroups apart by themselves (bpf/group.h)."""
    wanted = features()
    known = {one.partition("=")[0] for one in wanted} >= {"DMM_SK_CGROUP", "DMM_TASK_COMM"}
    return known and (bcc_version() is not None or _kept(wanted) is not None)


def prepare() -> list[str]:
    """Compiles, and keeps, what code() may want on this host. Returns what was kept, as text.

    Without the right to load programs, as in an installer's sandbox, only what suits any kernel.
    DmmError if nothing can be compiled or kept.
    """
    wanted = list(_ANY_KERNEL)
    try:
        wanted.insert(0, features())
    except PrivilegeError as error:
        log.warning("%s; only what suits any kernel is compiled", error)
    kept = []
    for defines in dict.fromkeys(wanted):
        size = sum(map(len, compile_programs(defines).values()))
        if _kept(defines) is None:
            raise DmmError(f"keep compiled programs in {cache.FOLDER}", why="it cannot be written")
        kept.append(f"{size} bytes with {' '.join(defines) or 'no macro'}")
    return kept


@functools.cache
def features() -> tuple[str, ...]:
    """programs.defines(), asked of the kernel once in its life."""
    probes = _digest([Path(programs.__file__), Path(protocolprobe.__file__)])
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError as error:
        raise KernelFeatureError(
            f"read {_BOOT_ID}",
            why=str(error.strerror),
            hint="mount proc whole (a unit's ProcSubset=pid leaves it out)",
        ) from error
    key = {"boot": boot, "probes": probes}
    kept = cache.read("features", key)
    if isinstance(kept, list) and all(isinstance(name, str) for name in kept):
        return tuple(kept)
    found = programs.defines()
    cache.write("features", key, found)
    return found


@functools.cache
def compile_programs(defines: tuple[str, ...] = ()) -> Code:
    """Program or step name to bytecode, as kept or as BCC compiles it. defines: C macros,
    NAME or NAME=VALUE.
    """
    kept = _kept(defines)
    if kept is not None:
        return kept
    text = _compile(defines)
    cache.write("programs", _key(defines), {"bcc": bcc_version(), "programs": text})
    return {name: bytes.fromhex(insns) for name, insns in text.items()}


def bcc_version() -> str | None:
    """Of the BCC that this interpreter would import, without importing it; None if
    there is none.
    """
    for folder in sys.path:
        try:
            return _digest([Path(folder) / "bcc/version.py"])
        except OSError:
            continue
    return None


def _kept(defines: tuple[str, ...]) -> Code | None:
    """What is in the cache, if the BCC that is installed made it, or if none is installed."""
    value = cache.read("programs", _key(defines))
    if not isinstance(value, dict) or bcc_version() not in (None, value.get("bcc")):
        return None
    try:
        found = {name: bytes.fromhex(value["programs"][name]) for name in FUNCTIONS}
    except (KeyError, TypeError, ValueError):
        return None
    return None if any(not insns or len(insns) % _INSN_BYTES for insns in found.values()) else found


def _key(defines: tuple[str, ...]) -> dict[str, Any]:
    return {"sources": _sources(), "flags": _macros(defines), "programs": list(FUNCTIONS)}


@functools.cache
def _sources() -> str:
    return _digest([_CHILD, *sorted(path for path in abi.bpf_dir().rglob("*.[ch]"))])


def _digest(files: list[Path]) -> str:
    """Of the names and contents of files."""
    found = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        found.update(f"{path.name} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _macros(defines: tuple[str, ...]) -> list[str]:
    return [
        *(f"-DDMM_MAP_{spec.name}={number}" for number, spec in enumerate(MAPS)),
        *(f"-D{macro}={c_type}" for macro, c_type in c_types()),
        f"-DDMM_CALLS={CALLS}",
        *(f"-DDMM_STEP_{name.removeprefix('dmm_')}={number}" for number, name in enumerate(STEPS)),
        *(f"-D{name}" for name in defines),
    ]


def _cflags(defines: tuple[str, ...]) -> list[str]:
    import sysconfig

    include = Path("/usr/include")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    paths = [abi.bpf_dir(), include, *([include / multiarch] if multiarch else [])]
    return [*(f"-I{path}" for path in paths), *_macros(defines), "-Wall", "-Wextra", "-Werror"]


def _compile(defines: tuple[str, ...]) -> dict[str, str]:
    """Program or step name to bytecode in hexadecimal."""
    job = {
        "source": str(abi.bpf_dir() / "dmm.bpf.c"),
        "compat": str(abi.bpf_dir() / "compat"),
        "cflags": _cflags(defines),
        "programs": list(FUNCTIONS),
    }
    # -I: what lies beside the script or in PYTHONPATH must not stand in for bcc's own imports.
    command = [sys.executable, "-I", str(_CHILD)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DmmError("compile the BPF programs", why=str(error)) from error
    if done.returncode == _NO_BCC:
        raise _NoBccError(
            "compile the BPF programs",
            why=f"{sys.executable} does not find BCC ({done.stderr.strip()})",
            hint="install python3-bpfcc and use a venv of /usr/bin/python3 made with --system-site-packages",
        )
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if "error:" in line
        ] or done.stderr.splitlines()
        raise DmmError(
            "compile the BPF programs",
            why="; ".join(lines[:3]) or f"BCC ended with code {done.returncode}",
            hint="" if Path("/usr/include/linux/bpf.h").exists() else "install linux-libc-dev",
        )
    compiled: dict[str, str] = json.loads(done.stdout)
    return compiled
