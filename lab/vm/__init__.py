# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that runs a command under another kernel, over this host's own
root file system.

    kernel = find_kernel("6.1") # Debian's package, unpacked, never installed code = run(kernel,
    ["dmm-ebpf", "status"], Options()) # in the guest, as root; output streams here

The guest sees every file of the host, read-only below a tmpfs: what it writes is gone with it. It
has no network, no disk and no port; several may run at once. Emulation is in software, so a guest
is some ten times slower than the host.
"""

from lab.vm.bytecode import prepare
from lab.vm.machine import Options, run
from lab.vm.packages import Kernel, find_kernel

__all__ = ["Kernel", "Options", "find_kernel", "prepare", "run"]
