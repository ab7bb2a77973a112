/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* if.h: linux/icmp.h includes it, and the real one pulls in the C library, which BPF has not. */
#define IFNAMSIZ 16
