# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what dmm-ebpf costs and gains, as ratios against a rival in the same run."""
