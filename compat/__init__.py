# SPDX-License-Identifier: Apache-2.0
"""The compatibility table: what else may be on a host, tried beside dmm-ebpf and compared with the
host without it.

case.py says what a case is, cases/ has all of them; site.py makes the hosts, cell.py tries one cell
on them, watch.py is what may be looked at; run.py compares, limits.py holds the results against
limits.toml, page.py writes the page.
"""
