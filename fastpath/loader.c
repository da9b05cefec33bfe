// SPDX-License-Identifier: GPL-2.0-only
/*
 * The part of loading that libbpf does best: read the object, relocate it, create its maps, have it
 * verified, pin all of it. Called from Python through ctypes (vfr/kernel/loader.py); steady-state
 * work on maps and links is raw bpf(2) there. Every function returns 0 or a negative errno.
 */
#define _GNU_SOURCE /* vasprintf */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* A `const volatile` variable of the object and the value it gets before loading. */
struct vfr_setting {
	const char *name;
	uint64_t value;
};

/* A map of the object's that is there already. */
struct vfr_shared {
	const char *name;
	int fd;
};

/* How an object is to be loaded. */
struct vfr_wish {
	const struct vfr_setting *settings;
	const struct vfr_shared *shared;
	const char *const *programs; /* the only ones that are wanted; NULL for all */
	int setting_count, shared_count, program_count;
};

static char *log_text;
static size_t log_room;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

/* Adds to the log. Where there is no room for all, it is the end that counts: there the verifier says why. */
static void append(const char *text, size_t length)
{
	size_t used = strlen(log_text), excess;

	if (length >= log_room) {
		text += length - log_room + 1;
		length = log_room - 1;
	}
	excess = used + length >= log_room ? used + length - log_room + 1 : 0;
	memmove(log_text, log_text + excess, used - excess);
	memcpy(log_text + used - excess, text, length);
	log_text[used - excess + length] = 0;
}

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	char *text;
	int length;

	if (level == LIBBPF_DEBUG || !log_text)
		return 0;
	length = vasprintf(&text, format, args);
	if (length < 0)
		return length;
	pthread_mutex_lock(&log_lock);
	append(text, length);
	pthread_mutex_unlock(&log_lock);
	free(text);
	return length;
}

static struct bpf_map *rodata_of(struct bpf_object *object)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
		if (strstr(bpf_map__name(map), ".rodata"))
			return map;
	return NULL;
}

static int set_variable(struct bpf_object *object, const struct vfr_setting *setting)
{
	const struct btf *btf = bpf_object__btf(object);
	int section = btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC);
	struct bpf_map *map = rodata_of(object);
	const struct btf_var_secinfo *var;
	const struct btf_type *type;
	size_t size;
	char *data;

	if (section < 0 || !map)
		return -ENOENT;
	data = (char *)bpf_map__initial_value(map, &size);
	type = btf__type_by_id(btf, section);
	var = btf_var_secinfos(type);
	for (int i = 0; i < btf_vlen(type); i++, var++) {
		const struct btf_type *v = btf__type_by_id(btf, var->type);

		if (strcmp(btf__name_by_offset(btf, v->name_off), setting->name))
			continue;
		if (var->size > sizeof(setting->value) || var->offset + var->size > size)
			return -EINVAL;
		memcpy(data + var->offset, &setting->value, var->size); /* little-endian hosts */
		return 0;
	}
	return -ENOENT;
}

/* Descriptors that are needed until an object is loaded, such as of the inner maps that outer ones are made by. */
struct descriptors {
	int fd[16];
	int count;
};

/*
 * Gives every map in map a template without BTF. libbpf would make one with it, and Linux 6.1 then
 * refuses the inner maps that the control plane makes, which have none: up to there the places of a
 * value's timer are compared, and "has none" and "has no BTF to say" are not the same number.
 */
static int make_templates(struct bpf_object *object, struct descriptors *made)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object) {
		const struct bpf_map *inner = bpf_map__inner_map(map);
		DECLARE_LIBBPF_OPTS(bpf_map_create_opts, opts);
		int fd, err;

		if (!inner)
			continue;
		if (made->count == (int)(sizeof(made->fd) / sizeof(*made->fd)))
			return -E2BIG;
		opts.map_flags = bpf_map__map_flags(inner);
		fd = bpf_map_create(bpf_map__type(inner), "template", bpf_map__key_size(inner),
				    bpf_map__value_size(inner), bpf_map__max_entries(inner), &opts);
		if (fd < 0)
			return fd;
		made->fd[made->count++] = fd;
		err = bpf_map__set_inner_map_fd(map, fd);
		if (err)
			return err;
	}
	return 0;
}

static int pin_maps(struct bpf_object *object, const char *directory)
{
	struct bpf_map *map;
	char path[4096];
	int err;

	bpf_object__for_each_map(map, object) {
		if (bpf_map__is_internal(map))
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, bpf_map__name(map));
		err = bpf_map__pin(map, path);
		if (err)
			return err;
	}
	return 0;
}

/* Whether this kernel lets a program read the kernel's own sk_buff (since 6.2). */
int vfr_has_kernel_context(void)
{
	struct btf *btf = btf__load_vmlinux_btf();
	int found;

	if (!btf || libbpf_get_error(btf))
		return 0;
	found = btf__find_by_name_kind(btf, "bpf_cast_to_kern_ctx", BTF_KIND_FUNC) > 0;
	btf__free(btf);
	return found;
}

static bool is_wanted(const struct vfr_wish *wish, const char *program)
{
	for (int i = 0; i < wish->program_count; i++)
		if (!strcmp(wish->programs[i], program))
			return true;
	return !wish->programs;
}

/* libbpf takes a shared map as it is, whatever the object says of its own: a map that is laid out otherwise is refused. */
static int share(struct bpf_object *object, const struct vfr_shared *shared)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, shared->name);
	struct bpf_map_info info = {};
	__u32 length = sizeof(info);
	int err;

	if (!map)
		return -ENOENT;
	err = bpf_obj_get_info_by_fd(shared->fd, &info, &length);
	if (err)
		return err;
	if (info.type != bpf_map__type(map) || info.key_size != bpf_map__key_size(map) ||
	    info.value_size != bpf_map__value_size(map) || info.max_entries != bpf_map__max_entries(map) ||
	    info.map_flags != bpf_map__map_flags(map)) {
		append("the map ", strlen("the map "));
		append(shared->name, strlen(shared->name));
		append(" that runs is laid out otherwise", strlen(" that runs is laid out otherwise"));
		return -EPROTO;
	}
	return bpf_map__reuse_fd(map, shared->fd);
}

/* Makes the object what it is wished to be, before it is loaded; all but its programs. */
static int prepare(struct bpf_object *object, const struct vfr_wish *wish)
{
	int err = 0;

	for (int i = 0; wish && i < wish->setting_count && !err; i++)
		err = set_variable(object, &wish->settings[i]);
	for (int i = 0; wish && i < wish->shared_count && !err; i++)
		err = share(object, &wish->shared[i]);
	return err;
}

/* Of all programs only this one is to be loaded; none, if there is no name. */
static int want_program(struct bpf_object *object, const char *name)
{
	struct bpf_program *program;
	int err = 0;

	bpf_object__for_each_program(program, object)
		if (!err)
			err = bpf_program__set_autoload(program, name && !strcmp(bpf_program__name(program), name));
	return err;
}

#define PARTS_MAX 8

/* One program of the object's, which is verified beside the others: that takes a second each. */
struct part {
	pthread_t thread;
	const char *path, *program;
	struct bpf_object *maps;     /* the same file, with all maps there */
	struct bpf_object *object;
	bool is_started;
	int err;
};

static void *load_part(void *argument)
{
	struct part *part = argument;
	struct bpf_map *map, *made;

	part->object = bpf_object__open_file(part->path, NULL);
	part->err = part->object ? want_program(part->object, part->program) : -errno;
	if (part->err)
		return NULL;
	bpf_object__for_each_map(map, part->object) {
		made = bpf_object__find_map_by_name(part->maps, bpf_map__name(map));
		part->err = made ? bpf_map__reuse_fd(map, bpf_map__fd(made)) : -ENOENT;
		if (part->err)
			return NULL;
	}
	part->err = bpf_object__load(part->object);
	return NULL;
}

static int pin_part(const struct part *part, const char *directory)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", directory, part->program);
	return bpf_program__pin(bpf_object__find_program_by_name(part->object, part->program), path);
}

/* Loads each program that is wanted, all at the same time, and pins them if that went well with all. */
static int load_parts(struct bpf_object *maps, const char *path, const char *directory, const struct vfr_wish *wish)
{
	struct part parts[PARTS_MAX] = {};
	struct bpf_program *program;
	int count = 0, err = 0;

	bpf_object__for_each_program(program, maps) {
		const char *name = bpf_program__name(program);

		if (wish && !is_wanted(wish, name))
			continue;
		if (count == PARTS_MAX)
			return -E2BIG;
		parts[count++] = (struct part){ .path = path, .program = name, .maps = maps };
	}
	for (int i = 0; i < count && !err; i++) {
		err = -pthread_create(&parts[i].thread, NULL, load_part, &parts[i]);
		parts[i].is_started = !err;
	}
	for (int i = 0; i < count; i++) {
		if (parts[i].is_started)
			pthread_join(parts[i].thread, NULL);
		err = err ? err : parts[i].err;
	}
	for (int i = 0; i < count && !err; i++)
		err = pin_part(&parts[i], directory);
	for (int i = 0; i < count; i++)
		bpf_object__close(parts[i].object);
	return err;
}

/* Loads an object, as it stands if `wish` is NULL, and pins its maps and programs in the directory. */
int vfr_load(const char *path, const char *directory, const struct vfr_wish *wish, char *log, size_t log_size)
{
	struct descriptors templates = {};
	struct bpf_object *object;
	int err;

	log_text = log;
	log_room = log_size;
	libbpf_set_print(keep_log);
	object = bpf_object__open_file(path, NULL);
	if (!object)
		return -errno;
	err = prepare(object, wish);
	if (!err)
		err = want_program(object, NULL);
	if (!err)
		err = make_templates(object, &templates);
	if (!err)
		err = bpf_object__load(object);
	if (!err)
		err = load_parts(object, path, directory, wish);
	if (!err)
		err = pin_maps(object, directory);
	bpf_object__close(object);
	while (templates.count)
		close(templates.fd[--templates.count]);
	return err;
}

/* Puts a loaded witness at its program's entry, and pins what ties them. */
static int attach_witness(struct bpf_program *witness, const char *directory)
{
	struct bpf_link *link;
	char path[4096];
	int err;

	link = bpf_program__attach_trace(witness);
	if (!link)
		return -errno;
	snprintf(path, sizeof(path), "%s/%s", directory, bpf_program__name(witness));
	err = bpf_link__pin(link, path);
	bpf_link__destroy(link);
	return err;
}

/* The object's fentry programs name what they are for: fentry/PROGRAM, pinned in the directory, as are its maps. */
static int aim_witnesses(struct bpf_object *object, const char *directory, struct descriptors *opened)
{
	struct bpf_program *witness;
	struct bpf_map *map;
	char path[4096];
	int err;

	bpf_object__for_each_map(map, object) {
		if (bpf_map__is_internal(map))
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, bpf_map__name(map));
		err = bpf_map__set_pin_path(map, path);
		if (err)
			return err;
	}
	bpf_object__for_each_program(witness, object) {
		const char *target = strchr(bpf_program__section_name(witness), '/') + 1;
		int fd;

		snprintf(path, sizeof(path), "%s/%s", directory, target);
		fd = bpf_obj_get(path);
		if (fd == -ENOENT) {
			/* An object of which not all was wanted. */
			err = bpf_program__set_autoload(witness, false);
			if (err)
				return err;
			continue;
		}
		if (fd < 0)
			return -errno;
		opened->fd[opened->count++] = fd;
		err = bpf_program__set_attach_target(witness, fd, target);
		if (err)
			return err;
	}
	return 0;
}

/* Puts a witness (witness.bpf.c) at the entry of each program that vfr_load has pinned. */
int vfr_load_witnesses(const char *path, const char *directory, char *log, size_t log_size)
{
	struct descriptors opened = {};
	struct bpf_program *witness;
	struct bpf_object *object;
	int err;

	log_text = log;
	log_room = log_size;
	libbpf_set_print(keep_log);
	object = bpf_object__open_file(path, NULL);
	if (!object)
		return -errno;
	err = aim_witnesses(object, directory, &opened);
	if (!err)
		err = bpf_object__load(object);
	if (!err)
		bpf_object__for_each_program(witness, object)
			if (!err && bpf_program__autoload(witness))
				err = attach_witness(witness, directory);
	bpf_object__close(object);
	while (opened.count)
		close(opened.fd[--opened.count]);
	return err;
}

/* The caller hears of a failure by its errno; libbpf need not print it too. */
static int say_nothing(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level;
	(void)format;
	(void)args;
	return 0;
}

/* clsact: for kernels without tcx. Returns 1 if the qdisc was made for this, 0 if it was there. */
int vfr_clsact_attach(int ifindex, int program)
{
	DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_INGRESS);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, opts, .prog_fd = program, .handle = 1, .priority = 1,
			    .flags = BPF_TC_F_REPLACE);
	int made, err;

	libbpf_set_print(say_nothing);
	made = bpf_tc_hook_create(&hook);
	if (made && made != -EEXIST)
		return made;
	err = bpf_tc_attach(&hook, &opts);
	return err ? err : made == 0;
}

/* The id of the program on our place of the clsact hook, or a negative errno. */
int vfr_clsact_program(int ifindex)
{
	DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_INGRESS);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, opts, .handle = 1, .priority = 1);
	int err;

	libbpf_set_print(say_nothing);
	err = bpf_tc_query(&hook, &opts);
	return err ? err : (int)opts.prog_id;
}

int vfr_clsact_detach(int ifindex, int remove_qdisc)
{
	DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_INGRESS);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, opts, .handle = 1, .priority = 1);
	int err;

	libbpf_set_print(say_nothing);
	err = bpf_tc_detach(&hook, &opts);
	if (err || !remove_qdisc)
		return err;
	hook.attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS;
	return bpf_tc_hook_destroy(&hook);
}
