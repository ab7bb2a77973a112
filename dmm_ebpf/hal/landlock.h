/* SPDX-License-Identifier: Apache-2.0 */
/*
 * landlock.h: no file, no TCP port, no process outside of this one (landlock(7)).
 */
#ifndef DMM_LANDLOCK_H
#define DMM_LANDLOCK_H

#include "halerr.h"

/*
 * For the calling thread and those that it makes from now on, for good; needs no_new_privs. What is
 * open stays open. Everything that the kernel can refuse is refused: files and directories of any
 * kind, and, where it knows them, bind(2) and connect(2) of TCP, abstract UNIX sockets and signals
 * to others. Returns the ABI version that the kernel has, 0 where it has no Landlock or it is
 * switched off, -errno with err filled on any other failure; the caller then must not go on.
 */
int dmm_landlock_apply(struct dmm_hal_error *err);

#endif /* DMM_LANDLOCK_H */
