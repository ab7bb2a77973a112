# SPDX-License-Identifier: Apache-2.0
"""What a start imports: asyncio without TLS, and nothing that it has no use for."""

from __future__ import annotations

import subprocess
import sys

from heavy import HEAVY

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


def test_the_modules_of_a_start_bring_nothing_heavy() -> None:
    """What they import when they are run is in tests/netns/test_startup.py."""
    code = """
import sys
import dmm_ebpf.lean
import dmm_ebpf.cli.main, dmm_ebpf.rd.life.attaching, dmm_ebpf.rd.director.instance
print(*sys.modules)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "dmm_ebpf.rd.director.instance" in done.stdout
    assert not [name for name in done.stdout.split() if name.startswith(HEAVY)]
