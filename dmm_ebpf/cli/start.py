# SPDX-License-Identifier: Apache-2.0
"""Where the process begins: Ctrl-C ends it without a word, also while the command line is
still being imported.
"""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run this process's command line; does not return."""
    try:
        from dmm_ebpf.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
