# SPDX-License-Identifier: Apache-2.0
"""The scripts, a topic a module; importing this imports all of them."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
