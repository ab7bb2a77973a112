# SPDX-License-Identifier: Apache-2.0
"""The compiled parts: cffi modules, built at install from the sources that each package names."""

from setuptools import setup

setup(
    cffi_modules=[
        "dmm_ebpf/build_abi.py:ffibuilder",
        "dmm_ebpf/kit/build_sim.py:ffibuilder",
        "dmm_ebpf/loader/build_libbpf.py:ffibuilder",
        "dmm_ebpf/rd/policy/build_routetable.py:ffibuilder",
        "dmm_ebpf/userstack/build_core.py:ffibuilder",
    ]
)
