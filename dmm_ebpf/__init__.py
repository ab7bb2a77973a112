# SPDX-License-Identifier: Apache-2.0
"""dmm-ebpf: protocol routing for Linux hosts."""

__version__ = "0.1.0"
