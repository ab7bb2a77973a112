/* SPDX-License-Identifier: Apache-2.0 */
/*
 * privileges.h: giving up what a process was started with, for good.
 *
 * To be called while the process has one thread: capabilities belong to threads (capabilities(7)).
 */
#ifndef DMM_PRIVILEGES_H
#define DMM_PRIVILEGES_H

#include "halerr.h"

/*
 * Empties the bounding and ambient sets, becomes uid and gid without supplementary groups, empties
 * every other capability set, and sets no_new_privs and non-dumpable. Where the ids cannot be taken
 * (a user namespace that does not map them) the process keeps its own and loses everything else.
 * Returns 1 when the ids were taken, 0 when not, -errno with err filled on any other failure; the
 * caller then must not go on.
 */
int dmm_privileges_drop(unsigned int uid, unsigned int gid, struct dmm_hal_error *err);

#endif /* DMM_PRIVILEGES_H */
