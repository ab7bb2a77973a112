/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * kconfig.h: what BCC's own prelude expects of a kernel tree, and nothing of a real kernel.
 *
 * BCC force-includes this file. It gives the kernel's short integer types, which BCC's helpers.h uses, and
 * the one configuration symbol it tests. No structure of any kernel version is here, so one tree serves every
 * kernel.
 */
#ifndef DMM_COMPAT_KCONFIG_H
#define DMM_COMPAT_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef signed short s16;
typedef signed int s32;
typedef signed long long s64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#endif /* DMM_COMPAT_KCONFIG_H */
