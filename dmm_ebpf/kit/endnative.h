/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endnative.h: a transport that is a shared object, built against end.h.
 *
 * It runs in the thread that runs connections, with the rights of its process, and calls the core's
 * functions as one that is built in does. How its calls may end, see caught.h; after one that was
 * left it is not called any more.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_KIT_ENDNATIVE_H
#define DMM_KIT_ENDNATIVE_H

#include "../userstack/core/guard/end_guard.h"

/* Loads the file and looks at what it exports. NULL: it is not one that can be used; why, of
 * END_WHY_BYTES, says so. It stays loaded. */
struct end_guard *end_native_open(const char *path, char *why);

/*
 * To be called now and then, from another thread: a call that was there the last time, and
 * still is, ends.
 */
void end_native_look(struct end_guard *guard);

#endif /* DMM_KIT_ENDNATIVE_H */
