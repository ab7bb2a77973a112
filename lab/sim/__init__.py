# SPDX-License-Identifier: Apache-2.0
"""The core under a virtual clock, against simulated kernels, peers, paths and outsiders."""
