# SPDX-License-Identifier: Apache-2.0
"""Proof by volume: simulated connections, and real programs over bad lines,
until something breaks.
"""
