/* SPDX-License-Identifier: Apache-2.0 */
/*
 * halfail.h: how an adapter fills struct dmm_hal_error. Not in halerr.h, of which cffi reads
 * declarations alone.
 */
#ifndef DMM_HALFAIL_H
#define DMM_HALFAIL_H

#include <errno.h>
#include <stdio.h>
#include "halerr.h"

/* what: the step, up to the device's name. Returns -code. */
static inline int dmm_hal_fail(struct dmm_hal_error *err, enum dmm_hal_call call, int code,
			       const char *what, const char *name)
{
	err->code = code;
	err->call = call;
	snprintf(err->what, sizeof(err->what), "%s %s", what, name);
	return -code;
}

/* what: the step, which concerns no device. The error is errno's. Returns -errno. */
static inline int dmm_hal_fail_self(struct dmm_hal_error *err, const char *what)
{
	err->code = errno;
	err->call = DMM_HAL_OTHER;
	snprintf(err->what, sizeof(err->what), "%s", what);
	return -err->code;
}

#endif /* DMM_HALFAIL_H */
