/* SPDX-License-Identifier: BSD-3-Clause */
/* The handover backend `none`, where the caller keeps the descriptors, and the choice of a backend.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "handover_support.h"
#include "layout.h"

/* ---- none ---- */

static int memfd_with_magic(uint64_t magic, uint32_t number)
{
	struct segment_rec head = {.magic = magic, .number = number};
	int fd = test_memfd(0);

	assert_int_equal(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
	return fd;
}

struct told {
	unsigned int adds, drops;
	uint64_t last;
	int answer;
};

static int told(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct told *t = ctx;

	assert_true(what == PV_KEEP_ADD ? fd >= 0 : fd == -1);
	*(what == PV_KEEP_ADD ? &t->adds : &t->drops) += 1;
	t->last = token;
	return t->answer;
}

static void none_sorts_by_content(void **state)
{
	int fds[3] = {memfd_with_magic(PV_SEGMENT_MAGIC, 1), memfd_with_magic(PV_INDEX_MAGIC, 0),
		      memfd_with_magic(PV_SEGMENT_MAGIC, 0)};
	struct told t = {0};
	struct pv_options o = {.size = sizeof(o),
			       .handover = PV_HANDOVER_NONE,
			       .fds = fds,
			       .nfds = 3,
			       .keep = told,
			       .keep_ctx = &t};
	struct pvi_handover *h;
	struct pvi_fd *got;
	unsigned int n;
	bool from_kexec;

	assert_int_equal(pvi_handover_open(STORE, &o, &h), 0);
	assert_int_equal(h->ops->fetch(h, &got, &n, &from_kexec), 0);
	assert_int_equal(n, 3);
	for (unsigned int i = 0; i < 3; i++) {
		assert_int_equal(got[i].token, i);
		assert_int_not_equal(got[i].fd, fds[i]);
	}
	test_release(got, n);
	assert_int_equal(h->ops->keep(h, 3, fds[0]), 0);
	assert_int_equal(h->ops->drop(h, 2), 0);
	assert_true(t.adds == 1 && t.drops == 1 && t.last == 2);
	t.answer = -ENOSPC;
	assert_int_equal(h->ops->keep(h, 4, fds[0]), -ENOSPC);
	t.answer = 0;
	/* 0, 1 and 3 are left. */
	assert_int_equal(h->ops->forget(h), 0);
	assert_int_equal(t.drops, 4);
	assert_int_equal(h->ops->fetch(h, &got, &n, &from_kexec), -ENOENT);
	h->ops->close(h);
	for (unsigned int i = 0; i < 3; i++)
		close(fds[i]);
}

static void none_refuses_foreign(void **state)
{
	int fds[2] = {memfd_with_magic(PV_INDEX_MAGIC, 0), test_memfd(1)};
	struct pv_options o = {
		.size = sizeof(o), .handover = PV_HANDOVER_NONE, .fds = fds, .nfds = 2};
	struct pvi_handover *h;
	struct pvi_fd *got;
	unsigned int n;
	bool from_kexec;

	assert_int_equal(pvi_handover_open(STORE, &o, &h), 0);
	assert_int_equal(h->ops->fetch(h, &got, &n, &from_kexec), -EBADMSG);
	assert_non_null(strstr(pv_last_error(), "fds[1]"));
	close(fds[1]);
	assert_int_equal(h->ops->fetch(h, &got, &n, &from_kexec), -EINVAL);
	fds[1] = memfd_with_magic(PV_INDEX_MAGIC, 0);
	assert_int_equal(h->ops->fetch(h, &got, &n, &from_kexec), -EBADMSG);
	assert_non_null(strstr(pv_last_error(), "token 0"));
	h->ops->close(h);
	close(fds[0]);
	close(fds[1]);
}

/* ---- choice ---- */

static void backend_is_chosen(void **state)
{
	struct pv_options o = test_options;
	struct pvi_handover *h;
	int luo = pvi_luo_available(), fd = 0;

	o.handover = 9;
	assert_int_equal(pvi_handover_open(STORE, &o, &h), -EINVAL);
	o.handover = PV_HANDOVER_HOLDER;
	o.fds = &fd;
	o.nfds = 1;
	assert_int_equal(pvi_handover_open(STORE, &o, &h), -EINVAL);
	o.nfds = 0;
	o.handover = PV_HANDOVER_AUTO;
	assert_int_equal(pvi_handover_open(STORE, &o, &h), 0);
	assert_int_equal(h->ops->kind, luo ? PV_HANDOVER_HOLDER : PV_HANDOVER_LUO);
	h->ops->close(h);
	o.handover = PV_HANDOVER_LUO;
	assert_int_equal(pvi_handover_open(STORE, &o, &h), luo);
	if (luo)
		assert_non_null(strstr(pv_last_error(), "/dev/liveupdate"));
	else
		h->ops->close(h);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(none_sorts_by_content),
		CASE(none_refuses_foreign),
		CASE(backend_is_chosen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
