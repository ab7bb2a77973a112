# SPDX-License-Identifier: Apache-2.0
"""Where an instance's policy comes from, if not from a file: etcd."""
