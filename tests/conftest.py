# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test: hosts and links (`lab`, `site`), cgroups (`cgroup`), and the check that nothing is left."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for path in (ROOT, ROOT / "tools", ROOT / "tests"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

pytest_plugins = ["labfixtures", "sitefixtures"]
