# SPDX-License-Identifier: Apache-2.0
"""Policies: what they say, whether they are right, what they mean for a flow, and in maps;
without a system call.
"""
