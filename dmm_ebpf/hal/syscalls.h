/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syscalls.h: the system calls that are left to a stack process once it serves (seccomp(2), by
 * libseccomp).
 */
#ifndef DMM_SYSCALLS_H
#define DMM_SYSCALLS_H

#include "halerr.h"

/*
 * For all threads of the process, for good; needs no_new_privs. Allowed is what a packet loop, an
 * event loop and malloc do with descriptors that are open and memory that holds no code; see the
 * list. Everything else fails with EPERM. Returns 0, or -errno with err filled; the caller then
 * must not go on.
 */
int dmm_seccomp_apply(struct dmm_hal_error *err);

#endif /* DMM_SYSCALLS_H */
