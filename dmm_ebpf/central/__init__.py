# SPDX-License-Identifier: Apache-2.0
"""The policy of a fleet in etcd: where it is kept, how it is pushed, and what hosts say of it."""
