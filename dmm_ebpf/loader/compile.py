# SPDX-License-Identifier: Apache-2.0
"""bpf/dmm.bpf.c to bytecode, by BCC in a child process, with no kernel headers: bpf/compat stands in for them.

The bytecode refers to maps by their number in spec.MAPS; programs.py puts fds there. The result depends on the sources
and on which helpers the kernel has, and is kept for the life of the process.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError, KernelFeatureError
from dmm_ebpf.loader.spec import MAPS, PROGRAMS

COMPILE_SECONDS = 60
_NO_BCC = 3


def _cflags(defines: tuple[str, ...]) -> list[str]:
    include = Path("/usr/include")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    paths = [abi.bpf_dir(), include, *([include / multiarch] if multiarch else [])]
    return [
        *(f"-I{path}" for path in paths),
        *(f"-DDMM_MAP_{spec.name}={number}" for number, spec in enumerate(MAPS)),
        *(f"-D{name}" for name in defines),
        "-Wall",
        "-Wextra",
        "-Werror",
    ]


@functools.cache
def compile_programs(defines: tuple[str, ...] = ()) -> Mapping[str, bytes]:
    """Program name to bytecode (struct bpf_insn, 8 bytes each). defines: C macros, NAME or NAME=VALUE."""
    job = {
        "source": str(abi.bpf_dir() / "dmm.bpf.c"),
        "compat": str(abi.bpf_dir() / "compat"),
        "cflags": _cflags(defines),
        "programs": [spec.name for spec in PROGRAMS],
    }
    # -I: what lies beside the script or in PYTHONPATH must not stand in for bcc's own imports.
    command = [sys.executable, "-I", str(Path(__file__).with_name("bcc_child.py"))]
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
        raise KernelFeatureError(
            "compile the BPF programs",
            why=f"{sys.executable} does not find BCC ({done.stderr.strip()})",
            hint="install python3-bpfcc and use a venv of /usr/bin/python3 made with --system-site-packages",
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
        raise DmmError(
            "compile the BPF programs",
            why="; ".join(lines[:3]) or f"BCC ended with code {done.returncode}",
            hint="" if Path("/usr/include/linux/bpf.h").exists() else "install linux-libc-dev",
        )
    return {name: bytes.fromhex(code) for name, code in json.loads(done.stdout).items()}
