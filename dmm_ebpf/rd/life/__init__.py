# SPDX-License-Identifier: Apache-2.0
"""How an instance begins and ends: attach, run, take-over, detach, and the signals
that come meanwhile.
"""
