# SPDX-License-Identifier: Apache-2.0
"""Congestion controls as plug-ins: how they are named, found, loaded, called and tried
in virtual time.
"""
