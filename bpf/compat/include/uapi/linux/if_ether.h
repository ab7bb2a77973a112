/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* if_ether.h: BCC asks for the kernel tree's copy; the user-space header is the same text. */
#include_next <linux/if_ether.h>
