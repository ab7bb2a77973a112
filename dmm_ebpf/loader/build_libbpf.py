# SPDX-License-Identifier: Apache-2.0
"""Builds dmm_ebpf.loader._libbpf: the part of libbpf that BCC cannot give us, flattened for Python.

Every C function here returns what libbpf 1.x returns: a value >= 0, or a negative errno. libbpf's option structs, whose
size differs from release to release, are filled in here in C and never seen by Python. No state, no policy.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    struct dmm_map_spec {
        const char *name; int type; unsigned int key_size, value_size, max_entries, flags;
        int inner_fd; int btf_fd; unsigned int btf_key_type, btf_value_type;
    };
    struct dmm_map_info { unsigned int type, id, key_size, value_size, max_entries, flags; char name[16]; };
    struct dmm_prog_spec {
        const char *name; int type; int expected_attach_type; unsigned int flags;
        const void *insns; size_t insn_cnt; char *log; unsigned int log_bytes, log_level;
        unsigned int attach_btf_id; int btf_fd; const void *func_info; unsigned int func_info_bytes;
    };
    struct dmm_prog_info { unsigned int type, id; unsigned char tag[8]; char name[16]; };
    struct dmm_link_info { unsigned int type, id, prog_id, attach_type, ifindex; unsigned long long cgroup_id; };
    struct dmm_xdp_state { unsigned int prog_id, drv_prog_id, skb_prog_id, hw_prog_id; int mode; };
    struct dmm_test {
        const void *data_in; unsigned int data_in_bytes; void *data_out; unsigned int data_out_bytes;
        void *ctx; unsigned int ctx_bytes; unsigned int retval, duration_ns; int repeat;
    };
    struct dmm_ring;

    int dmm_map_create(const struct dmm_map_spec *spec);
    int dmm_map_info(int fd, struct dmm_map_info *info);
    int dmm_map_lookup(int fd, const void *key, void *value);
    int dmm_map_update(int fd, const void *key, const void *value, unsigned long long flags);
    int dmm_map_delete(int fd, const void *key);
    int dmm_map_next_key(int fd, const void *key, void *next);
    int dmm_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, unsigned int *count);
    int dmm_map_update_batch(int fd, const void *keys, const void *values, unsigned int *count);
    int dmm_btf_load(const void *data, size_t bytes);
    int dmm_kernel_offsets(const char *const *pairs, unsigned int n, unsigned int *offsets);
    int dmm_kernel_function(const char *name);
    int dmm_prog_load(const struct dmm_prog_spec *spec);
    int dmm_has_map_type(int type);
    int dmm_has_prog_type(int type);
    const char *dmm_helper_name(unsigned int helper);
    int dmm_prog_info(int fd, struct dmm_prog_info *info);
    int dmm_prog_fd_by_id(unsigned int id);
    int dmm_prog_query(int target_fd, int type, unsigned int *attach_flags, unsigned int *ids, unsigned int *count);
    int dmm_prog_test(int fd, struct dmm_test *test);
    int dmm_link_create(int prog_fd, int target, int type, unsigned int flags);
    int dmm_iter_create(int link_fd);
    int dmm_link_detach(int fd);
    int dmm_link_info(int fd, struct dmm_link_info *info);
    int dmm_xsk_frags(void);
    int dmm_xsk_metadata(void);
    int dmm_xdp_query(int ifindex, struct dmm_xdp_state *state);
    int dmm_obj_pin(int fd, const char *path);
    int dmm_obj_get(const char *path);
    int dmm_cpus(void);
    long dmm_fs_magic(const char *path);
    int dmm_mount_bpffs(int mntns_fd, const char *path);
    int dmm_cgroup_open(int mount_fd, unsigned long long id);
    struct dmm_ring *dmm_ring_create(int map_fd, int *error);
    void dmm_ring_destroy(struct dmm_ring *ring);
    int dmm_ring_fd(struct dmm_ring *ring);
    long dmm_ring_read(struct dmm_ring *ring, void *buffer, size_t bytes, size_t record_bytes);
    void dmm_quiet(void);
    """
)

ffibuilder.set_source(
    "dmm_ebpf.loader._libbpf",
    (Path(__file__).resolve().parent / "libbpf_glue.c").read_text(encoding="utf-8"),
    libraries=["bpf"],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2"],
    # One file name, however the module is built: an older build under another name would be found first.
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
