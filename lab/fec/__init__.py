# SPDX-License-Identifier: Apache-2.0
"""The erasure code of user stacks (core/fec) by itself: as a library for tests, and how fast it is
(`python -m lab.fec`).
"""
