# SPDX-License-Identifier: Apache-2.0
"""Where a container, a process or a unit is: its cgroup and its network namespace."""
