# SPDX-License-Identifier: Apache-2.0
"""What people read, whoever shows it: figures in words, and which flows are meant."""
