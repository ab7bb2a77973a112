# SPDX-License-Identifier: Apache-2.0
"""What an instance has on the host: hooks, maps, NICs, stacks, their processes, and what is
read from them.
"""
