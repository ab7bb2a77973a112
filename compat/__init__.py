# SPDX-License-Identifier: Apache-2.0
"""The compatibility table: what else may be on a host, tried beside dmm-ebpf and compared with the
host without it.

case.py says what a case is, cases/ has all of them; site.py makes the hosts, cell.py tries one cell
on them, nft.py sets up nft there, watch.py is what may be looked at; run.py compares, guest.py does
all that under another kernel, results.py keeps what is known; limits.py holds it against
limits.toml, page.py writes the page.
"""
