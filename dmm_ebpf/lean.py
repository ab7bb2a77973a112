# SPDX-License-Identifier: Apache-2.0
"""asyncio without TLS. Import this before anything that imports asyncio.

asyncio imports ssl, and so all of OpenSSL, should somebody want TLS. Nobody here does, and it is a
sixth of what asyncio takes to import. asyncio does without where Python was built without it; so
for its import, and for that alone, it looks as if that were so. Whoever imports ssl later gets it.
"""

from __future__ import annotations

import sys


def import_asyncio() -> None:
    """Does nothing where asyncio, or ssl, was imported before."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    # See "import" in the language reference: None makes an import fail with ModuleNotFoundError.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


import_asyncio()
