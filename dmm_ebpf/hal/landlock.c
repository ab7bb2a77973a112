// SPDX-License-Identifier: Apache-2.0
/*
 * landlock.c: see landlock.h. Documentation/userspace-api/landlock.rst is the source for which ABI
 * version knows what. The calls and the struct are spelled out here because a C library's headers
 * may be older than the kernel.
 */
#include "landlock.h"
#include "halfail.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self 446
#endif

enum {
	CREATE_RULESET_VERSION = 1,
	FS_ABI_1 = (1 << 13) - 1, /* execute, write, read, list, remove, make */
	FS_REFER = 1 << 13,
	FS_TRUNCATE = 1 << 14,
	FS_IOCTL_DEV = 1 << 15,
	NET_BIND_AND_CONNECT_TCP = 3,
	SCOPE_ABSTRACT_UNIX_AND_SIGNAL = 3,
};

/*
 * struct landlock_ruleset_attr; an older kernel takes it as long as what it does not know is zero.
 */
struct ruleset {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

static struct ruleset everything(long abi)
{
	struct ruleset all = {.handled_access_fs = FS_ABI_1};

	if (abi >= 2)
		all.handled_access_fs |= FS_REFER;
	if (abi >= 3)
		all.handled_access_fs |= FS_TRUNCATE;
	if (abi >= 4)
		all.handled_access_net = NET_BIND_AND_CONNECT_TCP;
	if (abi >= 5)
		all.handled_access_fs |= FS_IOCTL_DEV;
	if (abi >= 6)
		all.scoped = SCOPE_ABSTRACT_UNIX_AND_SIGNAL;
	return all;
}

int dmm_landlock_apply(struct dmm_hal_error *err)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
	struct ruleset all;
	int fd, ret = 0;

	if (abi < 0 && (errno == ENOSYS || errno == EOPNOTSUPP))
		return 0;
	if (abi < 0)
		return dmm_hal_fail_self(err, "ask for the version of Landlock");
	all = everything(abi);
	fd = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0);
	if (fd < 0)
		return dmm_hal_fail_self(err, "make a Landlock ruleset");
	if (syscall(SYS_landlock_restrict_self, fd, 0))
		ret = dmm_hal_fail_self(err, "apply a Landlock ruleset");
	close(fd);
	return ret ? ret : (int)abi;
}
