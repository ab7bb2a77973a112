# SPDX-License-Identifier: Apache-2.0
"""Stack processes of your own, in Python: packets of routed flows, and nothing else to write."""
