# SPDX-License-Identifier: Apache-2.0
"""The BPF programs for a guest's kernel, compiled on the host: BCC is some forty times slower in
an emulated machine.

What to compile depends on what that kernel has. The guest is asked once, and the answer is kept
with the programs, where dmm-ebpf itself looks for them (dmm_ebpf.loader.cache): the guest sees
the host's files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from dmm_ebpf import loader
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import cache
from dmm_ebpf.loader.compile import compile_programs
from lab.vm.machine import Options, run
from lab.vm.packages import Kernel

ASK = "import json; from dmm_ebpf.loader.compile import features; print(json.dumps(features()))"
PYTHON = Path(sys.executable)


def prepare(kernel: Kernel) -> None:
    """Puts the programs for a guest's kernel where the guest will find them; DmmError
    if that fails.
    """
    key = {"release": kernel.release, "loader": _loader_digest()}
    features = cache.read("guest-features", key)
    if not isinstance(features, list):
        features = _ask(kernel)
        cache.write("guest-features", key, features)
    compile_programs(tuple(features))


def _ask(kernel: Kernel) -> list[str]:
    said = bytearray()

    def keep(fd: int, data: bytes) -> None:
        said.extend(data if fd == 1 else b"")

    code = run(kernel, [str(PYTHON), "-c", ASK], Options(output=keep))
    if code:
        raise DmmError(
            f"ask {kernel.release} what it has", why=f"Python ended with {code} in the guest"
        )
    answer: list[str] = json.loads(said)
    return answer


def _loader_digest() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(loader.__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
