/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libbpf_glue.h: the part of libbpf that BCC cannot give us, flattened for Python.
 *
 * Every function returns >= 0 or a negative errno, whatever libbpf's own mode is, where nothing
 * else is said. libbpf's option structs, whose size differs from release to release, are filled in
 * in C and never seen by Python. No state, no policy.
 *
 * cffi reads the declarations from this file, too (build_libbpf.py), without lines that start with
 * '#': so no macros with values here.
 */
#ifndef DMM_LIBBPF_GLUE_H
#define DMM_LIBBPF_GLUE_H

#include <stddef.h>

struct dmm_map_spec {
	const char *name;
	int type;
	unsigned int key_size, value_size, max_entries, flags;
	int inner_fd;
	int btf_fd;
	unsigned int btf_key_type, btf_value_type;
};

struct dmm_map_info {
	unsigned int type, id, key_size, value_size, max_entries, flags;
	char name[16];
};

struct dmm_prog_spec {
	const char *name;
	int type;
	int expected_attach_type;
	unsigned int flags;
	const void *insns;
	size_t insn_cnt;
	char *log;
	unsigned int log_bytes, log_level; /* BPF_LOG_* of linux/bpf_verifier.h */
	unsigned int attach_btf_id;
	int btf_fd; /* 0: no func_info */
	const void *func_info;
	unsigned int func_info_bytes;
};

struct dmm_prog_info {
	unsigned int type, id;
	unsigned char tag[8];
	char name[16];
};

struct dmm_link_info {
	unsigned int type, id, prog_id, attach_type, ifindex;
	unsigned long long cgroup_id;
};

struct dmm_xdp_state {
	unsigned int prog_id, drv_prog_id, skb_prog_id, hw_prog_id;
	int mode;
};

struct dmm_test {
	const void *data_in;
	unsigned int data_in_bytes;
	void *data_out;
	unsigned int data_out_bytes;
	void *ctx;
	unsigned int ctx_bytes;
	unsigned int retval, duration_ns;
	int repeat;
};

struct dmm_ring; /* a reader of a ring buffer whose records all have one size */

int dmm_map_create(const struct dmm_map_spec *spec);
int dmm_map_info(int fd, struct dmm_map_info *out);
int dmm_map_lookup(int fd, const void *key, void *value);
int dmm_map_update(int fd, const void *key, const void *value, unsigned long long flags);
int dmm_map_delete(int fd, const void *key);
int dmm_map_next_key(int fd, const void *key, void *next);
int dmm_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values,
			 unsigned int *count);
int dmm_map_update_batch(int fd, const void *keys, const void *values, unsigned int *count);

int dmm_btf_load(const void *data, size_t bytes);

/* pairs: a struct of the kernel's and its member, n times; offsets: n of them, in bytes. */
int dmm_kernel_offsets(const char *const *pairs, unsigned int n, unsigned int *offsets);

/* The id of a function in the running kernel's BTF. */
int dmm_kernel_function(const char *name);

int dmm_prog_load(const struct dmm_prog_spec *spec);

/* Whether the kernel has it: 1, 0, or a negative errno when that could not be told. All want
 * CAP_BPF and CAP_NET_ADMIN, without which the answer is 0. */
int dmm_has_map_type(int type);
int dmm_has_prog_type(int type);

/* Without bpf_; NULL if the headers that this was built with do not name it. */
const char *dmm_helper_name(unsigned int helper);

int dmm_prog_info(int fd, struct dmm_prog_info *out);
int dmm_prog_fd_by_id(unsigned int id);
int dmm_prog_query(int target_fd, int type, unsigned int *attach_flags, unsigned int *ids,
		   unsigned int *count);
int dmm_prog_test(int fd, struct dmm_test *test);

int dmm_link_create(int prog_fd, int target, int type, unsigned int flags);
int dmm_iter_create(int link_fd);
int dmm_tracepoint(const char *name, int prog_fd); /* a raw one */
int dmm_link_detach(int fd);
int dmm_link_info(int fd, struct dmm_link_info *out);

/* Whether AF_XDP sockets take packets in several frames: the flag is looked at before the device,
 * and there is none of index 0. */
int dmm_xsk_frags(void);

/*
 * Whether AF_XDP sockets take metadata of frames to be sent: memory with room for them is
 * registered. 1, 0, or -errno. The flag is of Linux 6.11; 6.8 to 6.10 know metadata, but not it.
 */
int dmm_xsk_metadata(void);

int dmm_xdp_query(int ifindex, struct dmm_xdp_state *state);
int dmm_obj_pin(int fd, const char *path);
int dmm_obj_get(const char *path);
int dmm_cpus(void);
long dmm_fs_magic(const char *path);

/*
 * Mounts bpffs on path as the mount namespace mntns_fd sees it. In a child: a process with threads
 * may not change its mount namespace, and must not keep it changed. Only async-signal-safe calls
 * between fork and _exit.
 */
int dmm_mount_bpffs(int mntns_fd, const char *path);

/* A directory fd of the cgroup with that id (the kernfs node id), or -ESTALE when it is gone. */
int dmm_cgroup_open(int mount_fd, unsigned long long id);

/*
 * A reader of the ring, NULL with an errno in error. Each read that found something is followed by
 * another wake-up late_ns later, for records that come without one.
 */
struct dmm_ring *dmm_ring_create(int map_fd, long late_ns, int *error);
void dmm_ring_destroy(struct dmm_ring *ring);

/* An epoll fd, readable when dmm_ring_read() should be called. */
int dmm_ring_fd(struct dmm_ring *ring);

/* Bytes of whole records copied; records left over stay in the ring. */
long dmm_ring_read(struct dmm_ring *ring, void *buffer, size_t bytes, size_t record_bytes);

/* libbpf prints nothing from now on. */
void dmm_quiet(void);

#endif /* DMM_LIBBPF_GLUE_H */
