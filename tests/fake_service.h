/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The service that the fake manager runs: it does what a script says, steps separated by "; ", and ends
 * with status 0, or at the first step that does not come out as it should, with a message and status 1.
 * A step's STORE is also its handle.
 *
 *	create STORE, open STORE, reset STORE, readonly STORE	pv_open()
 *	refuse STORE ERRNO TEXT	pv_open() without PV_CREATE fails like this; _ in TEXT is a space
 *	uncreated STORE ERRNO TEXT	the same with PV_CREATE
 *	add STORE N		put N large objects in
 *	full STORE		until that fails with -ENOSPC and a word about FileDescriptorStoreMax=
 *	empty STORE, trim STORE	free all objects; pv_trim()
 *	has STORE N		exactly N objects are there, and their contents
 *	segments STORE N	that many, and
 *	grown STORE N		at least so many
 *	check STORE RESULT, prepare STORE RESULT	pv_handover_check(), pv_handover_prepare()
 *	kind STORE KIND WARNINGS	pv_info; also with AUTO, which is what `open` of "auto" has chosen
 *	close STORE, destroy STORE
 *	send TEXT		to the manager, and wait until it has read it
 *	foreign N		so many of the descriptors passed in are none of libpreserve's: untouched
 *	fork			a child that stays; patience MS; kill (SIGKILL to itself)
 */
#ifndef TESTS_FAKE_SERVICE_H
#define TESTS_FAKE_SERVICE_H

/** Run a script; the exit status. */
int service_run(const char *script);

#endif
