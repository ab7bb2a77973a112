/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * actor.h: who acts, as rules ask for it: what is known of the caller's process.
 */
#ifndef DMM_ACTOR_H
#define DMM_ACTOR_H

#include "defs.h"

/* Who acts, as rules see it. */
struct dmm_facts {
	__u64 cgroup_id;
	__u64 netns_cookie;
	__u32 pid;
	__u32 uid;
	__u32 mark;
	__u8 dscp;
	__u8 kernel;		 /* 1: a thread of the kernel's */
	__u16 lport;		 /* 0: none yet */
	char comm[DMM_COMM_LEN]; /* the process's, not the thread's */
};

/* Only where the caller's task is the one that acts: sock_addr programs, and TCP_LISTEN_CB on
 * kernels that allow it. */
#ifdef DMM_TASK_COMM
#define PF_KTHREAD 0x00200000 /* linux/sched.h */

/* One helper call instead of four, each of which is dear where a return from a function is
 * (retbleed, SRSO).
 */
static __always_inline void facts_current(struct dmm_facts *facts)
{
	const void *task = dmm_current_task();
	const void *cred = KERNEL_LOAD(void *, task, DMM_TASK_CRED);
	const void *at = KERNEL_LOAD(void *, task, DMM_TASK_CGROUPS);
	const void *leader = KERNEL_LOAD(void *, task, DMM_TASK_LEADER);
	__u64 *comm = (__u64 *)facts->comm;

	facts->kernel = !!(KERNEL_LOAD(__u32, task, DMM_TASK_FLAGS) & PF_KTHREAD);
	facts->pid = KERNEL_LOAD(__u32, task, DMM_TASK_TGID);
	/* None of these is NULL, but the verifier may want to be told. */
	comm[0] = leader ? KERNEL_LOAD(__u64, leader, DMM_TASK_COMM) : 0;
	comm[1] = leader ? KERNEL_LOAD(__u64, leader, DMM_TASK_COMM + 8) : 0;
	facts->uid = cred ? KERNEL_LOAD(__u32, cred, DMM_CRED_UID) : 0;
	at = at ? KERNEL_LOAD(void *, at, DMM_CGROUPS_DFL) : NULL;
	at = at ? KERNEL_LOAD(void *, at, DMM_CGROUP_KN) : NULL;
	facts->cgroup_id = at ? KERNEL_LOAD(__u64, at, DMM_KN_ID) : 0;
}
#else
/* Without the kernel's BTF: the thread's name, and none is known to be the kernel's. */
static __always_inline void facts_current(struct dmm_facts *facts)
{
	facts->cgroup_id = bpf_get_current_cgroup_id();
	facts->pid = bpf_get_current_pid_tgid() >> 32;
	facts->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(facts->comm, sizeof(facts->comm));
}
#endif

/*
 * More of who acts. The file that the caller's process executes is as user space finds it in fdinfo
 * and mountinfo (dmm_ebpf/hal/exefile.py): where a file system is laid upon others, that of what is
 * on top. Read where a rule asks for it, and is no fact: there is no room for it on the stack of
 * connect().
 */
struct dmm_actor {
	__u64 inode; /* of the executable; 0: none, as of a thread of the kernel's */
	__u32 device;
	__u32 gid;
};

#ifdef DMM_TASK_COMM
static __always_inline __u32 gid_current(void)
{
	const char *cred = (const char *)probed((const char *)dmm_current_task() + DMM_TASK_CRED);

	return (__u32)probed(cred + DMM_CRED_GID);
}
#else
static __always_inline __u32 gid_current(void)
{
	return bpf_get_current_uid_gid() >> 32;
}
#endif

#ifdef DMM_EXE_INODE
/* Read from NULL is 0; so nothing is asked on the way, which the verifier would follow each way for
 * each program and rule.
 */
static __always_inline struct dmm_actor executable_current(void)
{
	const char *mm = (const char *)probed((const char *)dmm_current_task() + DMM_TASK_MM);
	const char *file = (const char *)probed(mm + DMM_MM_EXE);
	const char *inode = (const char *)probed(file + DMM_FILE_INODE);
	const char *sb = (const char *)probed(inode + DMM_INODE_SB);
	struct dmm_actor found = {.inode = probed(inode + DMM_EXE_INODE),
				  .device = (__u32)probed(sb + DMM_SB_DEV)};

	return found;
}
#else
/* Without the kernel's BTF no file is known, and no policy asks. */
static __always_inline struct dmm_actor executable_current(void)
{
	return (struct dmm_actor){};
}
#endif

static __always_inline struct dmm_actor actor_current(void)
{
	struct dmm_actor found = executable_current();

	found.gid = gid_current();
	return found;
}

#endif /* DMM_ACTOR_H */
