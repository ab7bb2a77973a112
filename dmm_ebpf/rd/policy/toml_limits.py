# SPDX-License-Identifier: Apache-2.0
"""What a policy's text must keep to before a TOML parser sees it.

tomllib makes several objects of each part of a dotted key, and copies a key's path at each of its
parts: 64 KB of dots take gigabytes. So size, line length, the parts of a key, and how many
different tables and dotted keys there are, are bounded first, in one pass that costs no more than
reading. No policy comes near these bounds.
"""

from __future__ import annotations

import re

from dmm_ebpf.errors import PolicyError

MAX_POLICY_BYTES = 4 << 20
MAX_LINE = 1 << 16
MAX_KEY_PARTS = 8
MAX_PATHS = 10_000
_PART = r"""(?:"(?:[^"\\]|\\.)*+"|'[^']*+'|[\w-]++)"""
_WORDS = re.compile(rf"#.*|({_PART}(?:\s*+\.\s*+{_PART})*+)(?=\s*+(.?))")
_PARTS = re.compile(_PART)


def check(text: str, source: str) -> None:
    """PolicyError, with the line, when text is beyond a bound. source names it."""
    if len(text.encode(errors="surrogatepass")) > MAX_POLICY_BYTES:
        raise PolicyError(
            f"accept {source}",
            why=f"it is larger than {MAX_POLICY_BYTES >> 20} MiB",
            hint="move long lists of routes to a file and name it in routes_from",
        )
    paths: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise PolicyError(
                f"accept {source}:{number}",
                why=f"the line is longer than {MAX_LINE} characters",
                hint="break it, or move routes to a file and name it in routes_from",
            )
        for path in _paths(line):
            if len(_PARTS.findall(path)) > MAX_KEY_PARTS:
                raise PolicyError(
                    f"accept {source}:{number}",
                    why=f"a key has more than {MAX_KEY_PARTS} dotted parts",
                )
            paths.add(path)
        if len(paths) > MAX_PATHS:
            raise PolicyError(
                f"accept {source}:{number}",
                why=f"it has more than {MAX_PATHS} different tables and dotted keys",
                hint="a table's routes share its name: [[tables.NAME.routes]]",
            )


def _paths(line: str) -> list[str]:
    """Names of tables, and dotted keys, in a line. In a string of several lines it may find
    what is none.
    """
    header = line.lstrip().startswith("[")
    if not header and "." not in line:
        return []
    ends = ("=", "]") if header else ("=",)
    return [match[1] for match in _WORDS.finditer(line) if match[2] in ends]
