// SPDX-License-Identifier: Apache-2.0
/*
 * syscalls.c: see syscalls.h.
 *
 * What is not allowed fails instead of killing the process: for who has taken it over that is the
 * same, and a C library that one day tries another call on a path nobody has walked here must not
 * cost a hundred thousand connections. clone3(2) fails with ENOSYS, as on kernels without it,
 * because callers then go back to clone(2) and report that one's EPERM.
 *
 * A filter cannot look behind a pointer. So there is no sendto(2) rule that tells addresses apart:
 * what a descriptor can reach was decided when it was opened.
 */
#include "syscalls.h"

#include <errno.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <fcntl.h>
#include <unistd.h>

/* On descriptors that are open */
static const int io_calls[] = {
	SCMP_SYS(read),	     SCMP_SYS(write),	    SCMP_SYS(readv),	   SCMP_SYS(writev),
	SCMP_SYS(recvfrom),  SCMP_SYS(sendto),	    SCMP_SYS(recvmsg),	   SCMP_SYS(sendmsg),
	SCMP_SYS(recvmmsg),  SCMP_SYS(sendmmsg),    SCMP_SYS(accept4),	   SCMP_SYS(shutdown),
	SCMP_SYS(close),     SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(getsockopt),
	SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_wait),  SCMP_SYS(epoll_pwait), SCMP_SYS(poll),
	SCMP_SYS(ppoll),     SCMP_SYS(fstat),	    SCMP_SYS(lseek),
};

/* Memory, time, threads that are there, signals, the end */
static const int own_calls[] = {
	SCMP_SYS(munmap),
	SCMP_SYS(mremap),
	SCMP_SYS(madvise),
	SCMP_SYS(brk),
	SCMP_SYS(futex),
	SCMP_SYS(sched_yield),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(nanosleep),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(time),
	SCMP_SYS(getrandom),
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigaltstack),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(getpid),
	SCMP_SYS(gettid),
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
};

static int allow(scmp_filter_ctx ctx, const int *calls, size_t n)
{
	int ret = 0;

	for (size_t i = 0; !ret && i < n; i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
	return ret;
}

static int allow_if(scmp_filter_ctx ctx, int call, struct scmp_arg_cmp arg)
{
	return seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call, 1, &arg);
}

/* Calls that are harmless with some arguments alone */
static int allow_some(scmp_filter_ctx ctx)
{
	const struct {
		int call;
		struct scmp_arg_cmp arg;
	} rules[] = {
		{SCMP_SYS(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
		{SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
		{SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, FIONBIO, 0)},
		{SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_TIMERSLACK, 0)},
		{SCMP_SYS(newfstatat), SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH, 0)},
		/* abort(3) */
		{SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0)},
	};
	int ret = 0;

	for (size_t i = 0; !ret && i < sizeof(rules) / sizeof(rules[0]); i++)
		ret = allow_if(ctx, rules[i].call, rules[i].arg);
	return ret;
}

static int filter_fill(scmp_filter_ctx ctx)
{
	int ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);

	/* A binary tree of comparisons; and no mitigation that slows every load of the process
	 * down, since nothing here runs code but what root has chosen. */
	if (!ret)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!ret)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_SSB, 1);
	if (!ret)
		ret = allow(ctx, io_calls, sizeof(io_calls) / sizeof(io_calls[0]));
	if (!ret)
		ret = allow(ctx, own_calls, sizeof(own_calls) / sizeof(own_calls[0]));
	if (!ret)
		ret = allow_some(ctx);
	if (!ret)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return ret;
}

int dmm_seccomp_apply(struct dmm_hal_error *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int ret = ctx ? filter_fill(ctx) : -ENOMEM;

	if (!ret)
		ret = seccomp_load(ctx);
	if (ctx)
		seccomp_release(ctx);
	if (ret) {
		err->code = -ret;
		snprintf(err->what, sizeof(err->what), "%s",
			 "filter the system calls of a stack process");
	}
	return ret;
}
