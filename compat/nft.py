# SPDX-License-Identifier: Apache-2.0
"""nft on a host, by the library that nft(8) itself is (libnftables(3)), so that no program has to
be started for each rule set: in an emulated machine that takes longer than the rules.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

from dmm_ebpf.errors import DmmError
from lab import Host

LIBRARY = "libnftables.so.1"
JSON_OUTPUT = 1 << 4  # NFT_CTX_OUTPUT_JSON of nftables/libnftables.h


class Nft:
    """The rule sets of a host's network namespace."""

    def __init__(self, host: Host) -> None:
        """Raises FileNotFoundError where nft is not installed."""
        self._host = host
        try:
            # Not CDLL: parts of the library are one for all threads, so one works at a time.
            self._library = ctypes.PyDLL(LIBRARY)
        except OSError as error:
            raise FileNotFoundError(LIBRARY) from error
        for name, kind in (
            ("nft_ctx_new", ctypes.c_void_p),
            ("nft_ctx_get_output_buffer", ctypes.c_char_p),
            ("nft_ctx_get_error_buffer", ctypes.c_char_p),
        ):
            getattr(self._library, name).restype = kind

    def run(self, text: str) -> str:
        """Does what the text says, as `nft -f` does; what it says. Raises DmmError with nft's
        own words.
        """
        return self._host.call(self._run, text, 0)

    def listed(self, what: str) -> list[dict[str, Any]]:
        """What `nft -j list` says of it: ruleset, sets, table netdev n."""
        said = self._host.call(self._run, f"list {what}", JSON_OUTPUT)
        found: list[dict[str, Any]] = json.loads(said)["nftables"]
        return found

    def _run(self, text: str, flags: int) -> str:
        library = self._library
        # One for each: what it knows of the namespace's devices goes with it alone.
        context = ctypes.c_void_p(library.nft_ctx_new(0))
        try:
            library.nft_ctx_output_set_flags(context, flags)
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            code = library.nft_run_cmd_from_buffer(context, text.encode())
            said = bytes(library.nft_ctx_get_output_buffer(context) or b"").decode()
            wrong = bytes(library.nft_ctx_get_error_buffer(context) or b"").decode()
        finally:
            library.nft_ctx_free(context)
        if code:
            raise DmmError("set up nft", why=" ".join((wrong or said).split()))
        return said
