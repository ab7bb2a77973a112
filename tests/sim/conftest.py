# SPDX-License-Identifier: Apache-2.0
"""The core's test programs, each built once per session, by the first test that needs it."""

from __future__ import annotations

import pytest

from lab.sim.corelab import Programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("core"))
