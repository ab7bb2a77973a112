# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets of the C core, with libFuzzer, ASan and UBSan."""
