# SPDX-License-Identifier: Apache-2.0
"""asyncio without TLS: nothing else is without it."""

from __future__ import annotations

import subprocess
import sys

SAID = "asyncio went without"
CODE = f"""
import sys
import dmm_ebpf.lean
import asyncio, asyncio.sslproto
assert "ssl" not in sys.modules and asyncio.sslproto.ssl is None
import ssl
ssl.create_default_context()
async def nothing(): return "{SAID}"
print(asyncio.run(nothing()))
"""


def test_asyncio_goes_without_tls_and_others_need_not() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{SAID}\n", "")
