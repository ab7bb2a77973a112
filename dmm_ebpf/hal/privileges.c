// SPDX-License-Identifier: Apache-2.0
/* privileges.c: see privileges.h. */
#include "privileges.h"
#include "halfail.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_CAPABILITY = 63 };

static int bounding_set_empty(struct dmm_hal_error *err)
{
	for (unsigned long cap = 0; cap <= MAX_CAPABILITY; cap++) {
		/* EINVAL: past the last capability that this kernel knows */
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
			return errno == EINVAL ? 0
					       : dmm_hal_fail_self(
							 err, "empty the capability bounding set");
	}
	return 0;
}

static int ids_take(unsigned int uid, unsigned int gid, struct dmm_hal_error *err)
{
	if (setgroups(0, NULL) == 0 && setresgid(gid, gid, gid) == 0 &&
	    setresuid(uid, uid, uid) == 0)
		return 1;
	if (errno == EINVAL || errno == EPERM)
		return 0;
	return dmm_hal_fail_self(err, "become an unprivileged user");
}

int dmm_privileges_drop(unsigned int uid, unsigned int gid, struct dmm_hal_error *err)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
	int ret = bounding_set_empty(err);

	if (ret)
		return ret;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return dmm_hal_fail_self(err, "clear the ambient capabilities");
	ret = ids_take(uid, gid, err);
	if (ret < 0)
		return ret;
	memset(none, 0, sizeof(none));
	if (syscall(SYS_capset, &header, none))
		return dmm_hal_fail_self(err, "drop all capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return dmm_hal_fail_self(err, "set no_new_privs");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return dmm_hal_fail_self(err, "become non-dumpable");
	return ret;
}
