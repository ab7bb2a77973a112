/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native.h: a congestion control that is a shared object, built against cc.h.
 *
 * It runs in the thread that runs connections, with the rights of its process. A call that is ended
 * by a signal of its own making (SIGSEGV, SIGBUS, SIGFPE, SIGILL), or that does not come back, is
 * left by siglongjmp(3): a control is pure computation and holds nothing that would have to be let
 * go. After that the plug-in is not called any more.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_KIT_NATIVE_H
#define DMM_KIT_NATIVE_H

#include "../userstack/core/cc/cc_guard.h"

/* Loads the file and looks at what it exports. NULL: it is not one that can be used; why, of
 * CC_WHY_BYTES, says so. It stays loaded. */
struct cc_guard *cc_native_open(const char *path, char *why);

/*
 * To be called now and then, from another thread: a call that was there the last time, and
 * still is, ends.
 */
void cc_native_look(struct cc_guard *guard);

#endif /* DMM_KIT_NATIVE_H */
