/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libbpf_glue.c: the body of dmm_ebpf.loader._libbpf (see libbpf_glue.h). Owns nothing but struct
 * dmm_ring.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <linux/if_xdp.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include "libbpf_glue.h"

#define FILEID_KERNFS 0xfe /* linux/exportfs.h */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif

/*
 * Programs wake a reader now and then only; timer_fd makes the reader look again, late_ns later,
 * for what came unannounced. It sits in the ring's own epoll set, so that one fd says when to read.
 */
struct dmm_ring {
	struct ring_buffer *rb;
	int timer_fd;
	long late_ns;
	unsigned char *at;
	size_t left_bytes;
	size_t record_bytes;
};

static int failed(int ret)
{
	if (ret >= 0)
		return ret;
	return ret == -1 && errno ? -errno : ret;
}

int dmm_map_create(const struct dmm_map_spec *spec)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = spec->flags,
		    .inner_map_fd = spec->inner_fd, .btf_fd = spec->btf_fd,
		    .btf_key_type_id = spec->btf_key_type,
		    .btf_value_type_id = spec->btf_value_type);

	return failed(bpf_map_create(spec->type, spec->name, spec->key_size, spec->value_size,
				     spec->max_entries, &opts));
}

int dmm_map_info(int fd, struct dmm_map_info *out)
{
	struct bpf_map_info info = {0};
	__u32 len = sizeof(info);
	int ret = failed(bpf_obj_get_info_by_fd(fd, &info, &len));

	if (ret < 0)
		return ret;
	out->type = info.type;
	out->id = info.id;
	out->key_size = info.key_size;
	out->value_size = info.value_size;
	out->max_entries = info.max_entries;
	out->flags = info.map_flags;
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int dmm_map_lookup(int fd, const void *key, void *value)
{
	return failed(bpf_map_lookup_elem(fd, key, value));
}

int dmm_map_update(int fd, const void *key, const void *value, unsigned long long flags)
{
	return failed(bpf_map_update_elem(fd, key, value, flags));
}

int dmm_map_delete(int fd, const void *key)
{
	return failed(bpf_map_delete_elem(fd, key));
}

int dmm_map_next_key(int fd, const void *key, void *next)
{
	return failed(bpf_map_get_next_key(fd, key, next));
}

int dmm_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, unsigned int *count)
{
	return failed(bpf_map_lookup_batch(fd, in, out, keys, values, count, NULL));
}

int dmm_map_update_batch(int fd, const void *keys, const void *values, unsigned int *count)
{
	return failed(bpf_map_update_batch(fd, keys, values, count, NULL));
}

int dmm_btf_load(const void *data, size_t bytes)
{
	return failed(bpf_btf_load(data, bytes, NULL));
}

/* In bytes. Members of anonymous structs count as their parent's own, as in C. */
static int member_offset(const struct btf *btf, unsigned int id, const char *name)
{
	const struct btf_type *type = btf__type_by_id(btf, id);
	const struct btf_member *members = btf_members(type);

	for (unsigned int i = 0; i < btf_vlen(type); i++) {
		const char *found = btf__name_by_offset(btf, members[i].name_off);
		int bytes = (int)btf_member_bit_offset(type, i) / 8;

		if (!strcmp(found, name))
			return bytes;
		if (!*found && btf_is_composite(btf__type_by_id(btf, members[i].type))) {
			int inner = member_offset(btf, members[i].type, name);

			if (inner >= 0)
				return bytes + inner;
		}
	}
	return -ENOENT;
}

int dmm_kernel_offsets(const char *const *pairs, unsigned int n, unsigned int *offsets)
{
	struct btf *btf = btf__load_vmlinux_btf();
	int ret = 0;

	if (!btf)
		return -errno;
	for (unsigned int i = 0; i < n && ret >= 0; i++) {
		ret = btf__find_by_name_kind(btf, pairs[2 * i], BTF_KIND_STRUCT);
		if (ret >= 0)
			ret = member_offset(btf, (unsigned int)ret, pairs[2 * i + 1]);
		if (ret >= 0)
			offsets[i] = (unsigned int)ret;
	}
	btf__free(btf);
	return failed(ret) < 0 ? ret : 0;
}

int dmm_kernel_function(const char *name)
{
	struct btf *btf = btf__load_vmlinux_btf();
	int id;

	if (!btf)
		return -errno;
	id = btf__find_by_name_kind(btf, name, BTF_KIND_FUNC);
	btf__free(btf);
	return failed(id);
}

int dmm_prog_load(const struct dmm_prog_spec *spec)
{
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = spec->expected_attach_type,
		    .prog_flags = spec->flags, .log_buf = spec->log, .log_size = spec->log_bytes,
		    .log_level = spec->log_level, .attach_btf_id = spec->attach_btf_id,
		    .prog_btf_fd = spec->btf_fd);

	if (spec->btf_fd) {
		opts.func_info = spec->func_info;
		opts.func_info_rec_size = sizeof(struct bpf_func_info);
		opts.func_info_cnt = spec->func_info_bytes / sizeof(struct bpf_func_info);
	}
	return failed(bpf_prog_load(spec->type, spec->name, "Dual BSD/GPL", spec->insns,
				    spec->insn_cnt, &opts));
}

int dmm_has_map_type(int type)
{
	return libbpf_probe_bpf_map_type(type, NULL);
}

int dmm_has_prog_type(int type)
{
	return libbpf_probe_bpf_prog_type(type, NULL);
}

const char *dmm_helper_name(unsigned int helper)
{
/* Headers of Linux 6.2 and later leave the comma to the macro. */
#ifdef ___BPF_FUNC_MAPPER
#define NAME(name, ...) #name,
#else
#define NAME(name, ...) #name
#endif
	static const char *const names[] = {__BPF_FUNC_MAPPER(NAME)};
#undef NAME

	return helper < sizeof(names) / sizeof(names[0]) ? names[helper] : NULL;
}

int dmm_prog_info(int fd, struct dmm_prog_info *out)
{
	struct bpf_prog_info info = {0};
	__u32 len = sizeof(info);
	int ret = failed(bpf_obj_get_info_by_fd(fd, &info, &len));

	if (ret < 0)
		return ret;
	out->type = info.type;
	out->id = info.id;
	memcpy(out->tag, info.tag, sizeof(out->tag));
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int dmm_prog_fd_by_id(unsigned int id)
{
	return failed(bpf_prog_get_fd_by_id(id));
}

int dmm_prog_query(int target_fd, int type, unsigned int *attach_flags, unsigned int *ids,
		   unsigned int *count)
{
	return failed(bpf_prog_query(target_fd, type, 0, attach_flags, ids, count));
}

int dmm_prog_test(int fd, struct dmm_test *test)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = test->data_in,
		    .data_size_in = test->data_in_bytes, .data_out = test->data_out,
		    .data_size_out = test->data_out_bytes, .ctx_in = test->ctx,
		    .ctx_size_in = test->ctx_bytes, .repeat = test->repeat);
	int ret;

	if (test->data_out) {
		/* A caller that takes the packet back takes the context back too (skb->mark). */
		opts.ctx_out = test->ctx;
		opts.ctx_size_out = test->ctx_bytes;
	}
	ret = failed(bpf_prog_test_run_opts(fd, &opts));
	test->retval = opts.retval;
	test->duration_ns = opts.duration;
	test->data_out_bytes = opts.data_size_out;
	return ret;
}

int dmm_link_create(int prog_fd, int target, int type, unsigned int flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = flags);

	return failed(bpf_link_create(prog_fd, target, type, &opts));
}

int dmm_tracepoint(const char *name, int prog_fd)
{
	return failed(bpf_raw_tracepoint_open(name, prog_fd));
}

int dmm_iter_create(int link_fd)
{
	return failed(bpf_iter_create(link_fd));
}

int dmm_link_detach(int fd)
{
	return failed(bpf_link_detach(fd));
}

int dmm_link_info(int fd, struct dmm_link_info *out)
{
	struct bpf_link_info info = {0};
	__u32 len = sizeof(info);
	int ret = failed(bpf_obj_get_info_by_fd(fd, &info, &len));

	if (ret < 0)
		return ret;
	memset(out, 0, sizeof(*out));
	out->type = info.type;
	out->id = info.id;
	out->prog_id = info.prog_id;
	if (info.type == BPF_LINK_TYPE_CGROUP) {
		out->cgroup_id = info.cgroup.cgroup_id;
		out->attach_type = info.cgroup.attach_type;
	} else if (info.type == BPF_LINK_TYPE_XDP) {
		out->ifindex = info.xdp.ifindex;
	}
	return 0;
}

int dmm_xsk_frags(void)
{
	struct sockaddr_xdp addr = {.sxdp_family = AF_XDP, .sxdp_flags = XDP_USE_SG};
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	int knows;

	if (fd < 0)
		return 0;
	knows = bind(fd, (struct sockaddr *)&addr, sizeof(addr)) && errno == ENODEV;
	close(fd);
	return knows;
}

int dmm_xsk_metadata(void)
{
	struct {
		__u64 addr, len;
		__u32 chunk_size, headroom, flags, tx_metadata_len;
	} reg = {.chunk_size = 4096, .len = 4096, .flags = 1 << 2, .tx_metadata_len = 24};
	void *page =
		mmap(NULL, reg.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	int done = fd < 0 || page == MAP_FAILED ? -errno : 0;

	if (!done) {
		reg.addr = (__u64)(unsigned long)page;
		done = setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) ? -errno : 1;
	}
	if (fd >= 0)
		close(fd);
	if (page != MAP_FAILED)
		munmap(page, reg.len);
	return done == -EINVAL ? 0 : done;
}

int dmm_xdp_query(int ifindex, struct dmm_xdp_state *state)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	int ret = failed(bpf_xdp_query(ifindex, 0, &opts));

	if (ret < 0)
		return ret;
	state->prog_id = opts.prog_id;
	state->drv_prog_id = opts.drv_prog_id;
	state->skb_prog_id = opts.skb_prog_id;
	state->hw_prog_id = opts.hw_prog_id;
	state->mode = opts.attach_mode;
	return 0;
}

int dmm_obj_pin(int fd, const char *path)
{
	return failed(bpf_obj_pin(fd, path));
}

int dmm_obj_get(const char *path)
{
	return failed(bpf_obj_get(path));
}

int dmm_cpus(void)
{
	return failed(libbpf_num_possible_cpus());
}

long dmm_fs_magic(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) ? -errno : (long)(uint32_t)fs.f_type;
}

int dmm_mount_bpffs(int mntns_fd, const char *path)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (!pid) {
		if (setns(mntns_fd, CLONE_NEWNS))
			_exit(errno & 0xff);
		if (mount("bpf", path, "bpf", 0, "mode=0700"))
			_exit(errno & 0xff);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

int dmm_cgroup_open(int mount_fd, unsigned long long id)
{
	union {
		struct file_handle handle;
		char space[sizeof(struct file_handle) + sizeof(uint64_t)];
	} u;
	uint64_t node = id;
	int fd;

	memset(&u, 0, sizeof(u));
	u.handle.handle_bytes = sizeof(node);
	u.handle.handle_type = FILEID_KERNFS;
	memcpy(u.handle.f_handle, &node, sizeof(node));
	fd = open_by_handle_at(mount_fd, &u.handle, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* A record that did not fit would be lost; so the last call that surely has room ends the run. */
static int ring_collect(void *ctx, void *data, size_t size)
{
	struct dmm_ring *ring = ctx;

	if (size != ring->record_bytes)
		return 0;
	memcpy(ring->at, data, size);
	ring->at += size;
	ring->left_bytes -= size;
	return ring->left_bytes < size ? -ENOSPC : 0;
}

void dmm_ring_destroy(struct dmm_ring *ring)
{
	if (ring->timer_fd >= 0)
		close(ring->timer_fd);
	ring_buffer__free(ring->rb);
	free(ring);
}

struct dmm_ring *dmm_ring_create(int map_fd, long late_ns, int *error)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct dmm_ring *ring = calloc(1, sizeof(*ring));

	*error = ENOMEM;
	if (!ring)
		return NULL;
	ring->late_ns = late_ns;
	ring->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (ring->timer_fd >= 0)
		ring->rb = ring_buffer__new(map_fd, ring_collect, ring, NULL);
	/* libbpf numbers its rings in event.data; this fd is only ever waited for, never dispatched
	 * by libbpf. */
	if (!ring->rb ||
	    epoll_ctl(ring_buffer__epoll_fd(ring->rb), EPOLL_CTL_ADD, ring->timer_fd, &event)) {
		*error = errno;
		dmm_ring_destroy(ring);
		return NULL;
	}
	return ring;
}

int dmm_ring_fd(struct dmm_ring *ring)
{
	return ring_buffer__epoll_fd(ring->rb);
}

long dmm_ring_read(struct dmm_ring *ring, void *buffer, size_t bytes, size_t record_bytes)
{
	const struct itimerspec late = {.it_value.tv_nsec = ring->late_ns};
	uint64_t expirations;
	int ret;

	if (bytes < record_bytes)
		return -ENOSPC;
	/* EAGAIN when the timer has not run: only its readiness matters. */
	if (read(ring->timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN)
		return -errno;
	ring->at = buffer;
	ring->left_bytes = bytes;
	ring->record_bytes = record_bytes;
	ret = ring_buffer__consume(ring->rb);
	if (ret < 0 && ret != -ENOSPC)
		return ret;
	if (ring->left_bytes < bytes && timerfd_settime(ring->timer_fd, 0, &late, NULL))
		return -errno;
	return (long)(bytes - ring->left_bytes);
}

void dmm_quiet(void)
{
	libbpf_set_print(NULL);
}
