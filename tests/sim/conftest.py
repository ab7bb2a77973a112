# SPDX-License-Identifier: Apache-2.0
"""The core's test programs, linked once per session."""

from __future__ import annotations

import pytest

from lab.sim.corelab import Programs, build_all


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build_all(tmp_path_factory.mktemp("core"))
