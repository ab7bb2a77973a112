/* SPDX-License-Identifier: Apache-2.0 */
/*
 * halerr.h: how the C adapters tell Python what failed: the errno and the step, from which Python makes a
 * sentence.
 *
 * Text below the guard is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_HALERR_H
#define DMM_HALERR_H

struct dmm_hal_error {
	int code;      /* errno; 0: nothing failed */
	char what[92]; /* the step, as the rest of "cannot ..." */
};

#endif /* DMM_HALERR_H */
