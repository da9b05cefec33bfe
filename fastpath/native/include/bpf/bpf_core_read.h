/* SPDX-License-Identifier: GPL-2.0-only */
/* Stands in for libbpf's header of this name: natively every field is where the compiler put it. */
#ifndef NATIVE_BPF_CORE_READ_H
#define NATIVE_BPF_CORE_READ_H

#define preserve_access_index /* __attribute__((preserve_access_index)) becomes an empty one */

#define NATIVE_NTH(_1, _2, _3, _4, N, ...) N
#define NATIVE_READ1(s, a) ((s)->a)
#define NATIVE_READ2(s, a, b) ((s)->a->b)
#define NATIVE_READ3(s, a, b, c) ((s)->a->b->c)
#define NATIVE_READ4(s, a, b, c, d) ((s)->a->b->c->d)
#define BPF_CORE_READ(s, ...) \
	NATIVE_NTH(__VA_ARGS__, NATIVE_READ4, NATIVE_READ3, NATIVE_READ2, NATIVE_READ1)(s, __VA_ARGS__)
#define BPF_CORE_READ_BITFIELD(s, field) ((unsigned long long)(s)->field)
#define BPF_CORE_READ_BITFIELD_PROBED(s, field) BPF_CORE_READ_BITFIELD(s, field)
#define bpf_core_read(to, size, from) (__builtin_memcpy(to, from, size), 0)
#define bpf_core_field_exists(field...) 1
#define bpf_core_type_exists(type) 1

#endif
