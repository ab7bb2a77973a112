# SPDX-License-Identifier: Apache-2.0
"""The short-lived process in which BCC compiles: LLVM's 120 MB go when it ends. Run as a
script, never imported.

stdin: {"source", "cflags", "compat", "programs"} as JSON. stdout: {program: bytecode in hex}.
clang's messages go to stderr; exit code 1 with a line on stderr is a compile error, 3 is that BCC
is not installed for this interpreter.
Needs no privilege: it makes no map and loads no program.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> int:
    """Compiles what stdin asks for."""
    job = json.load(sys.stdin)
    os.environ["BCC_KERNEL_SOURCE"] = job["compat"]
    try:
        from bcc import BPF
    except ImportError as error:
        print(error, file=sys.stderr)
        return 3
    try:
        module = BPF(src_file=job["source"], cflags=job["cflags"])
        code = {name: module.dump_func(name.encode()).hex() for name in job["programs"]}
    except Exception as error:  # BCC raises nothing more exact
        print(error, file=sys.stderr)
        return 1
    json.dump(code, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
