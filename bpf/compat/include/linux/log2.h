/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* log2.h: BCC's prelude includes it; nothing in it is needed (BCC brings its own struct definitions). */
