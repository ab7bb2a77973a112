# SPDX-License-Identifier: Apache-2.0
"""The comparison of sockets: scripts of two programs and a connection, run with dmm-ebpf
and without it.
"""
