/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_upgrade_several.c - crash sweeps of several types that are upgraded as one. The contents are a list of
 * owners, each with an account that names it in turn. Both types change, and the function of each reads
 * the object of the other type in its old layout: so a state in which one type has changed and the other
 * has not is found, and so is a function that met one. A third type is new with the second version.
 */
#include <errno.h>

#include <preserve/upgrade.h>

#include "fixture.h"

enum { PAIRS = 4 };

/* ---- the versions ---- */

struct owner1 {
	struct owner1 *next;
	struct account1 *account;
	uint64_t key;
};
struct account1 {
	uint64_t sum;
	struct owner1 *owner;
};
struct owner2 { /* larger, and of another size class */
	uint64_t key;
	uint64_t sum; /* of the account, when it was upgraded */
	struct account2 *account;
	struct owner2 *next;
	uint64_t spare[3];
};
struct account2 { /* as large as before */
	struct owner2 *owner;
	uint64_t key_and_sum;
};
struct mark {
	uint64_t unused;
};
struct head {
	void *first;
};

static bool second_fails;

static uint64_t sum_of(uint64_t key)
{
	return 1000 + 7 * key;
}

static int owner_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct owner1 *from = old;
	struct owner2 *to = fresh;

	if (from->account->owner != from || from->account->sum != sum_of(from->key))
		return -EBADE; /* not as it was */
	*to = (struct owner2){from->key, from->account->sum, (struct account2 *)from->account,
			      (struct owner2 *)from->next, {0}};
	return 0;
}

static int account_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct account1 *from = old;
	struct account2 *to = fresh;

	if (from->owner->account != from)
		return -EBADE;
	if (second_fails && from->owner->key == PAIRS - 1)
		return -EDOM;
	*to = (struct account2){(struct owner2 *)from->owner, from->owner->key << 32 | from->sum};
	return 0;
}

static const struct pv_upgrade owner_steps[] = {PV_UPGRADE(1, 2, struct owner2, owner_to_2)};
static const struct pv_upgrade account_steps[] = {PV_UPGRADE(1, 2, struct account2, account_to_2)};

static const struct pv_typedef owners[3] = {
	[1] = PV_TYPE(struct owner1, "owner", 1, PV_POINTER_TO(struct owner1, next, "owner"),
		      PV_POINTER_TO(struct owner1, account, "account")),
	[2] = {PV_TYPE_OF(struct owner2, "owner", 2, PV_POINTER_TO(struct owner2, next, "owner"),
			  PV_POINTER_TO(struct owner2, account, "account")),
	       .nupgrades = 1, .upgrades = owner_steps},
};
static const struct pv_typedef accounts[3] = {
	[1] = PV_TYPE(struct account1, "account", 1, PV_POINTER_TO(struct account1, owner, "owner")),
	[2] = {PV_TYPE_OF(struct account2, "account", 2, PV_POINTER_TO(struct account2, owner, "owner")),
	       .nupgrades = 1, .upgrades = account_steps},
};
static const struct pv_typedef mark_type = PV_TYPE_PLAIN(struct mark, "mark", 1);
static const struct pv_typedef head_type =
	PV_TYPE(struct head, "head", 1, PV_POINTER_TO(struct head, first, "owner"));

/* ---- operations ---- */

static int note_error(const char *call, int rc)
{
	if (rc)
		crash_note("%s: %s", call, pv_last_error());
	return rc;
}

static int op_upgrade(void *ctx, uintptr_t fails)
{
	static const struct pv_typedef *const defs[] = {&owners[2], &mark_type, &accounts[2]};
	struct fixture *f = ctx;
	pv_type_t types[3];
	int rc;

	second_fails = fails;
	rc = pv_types_register(f->store, defs, 3, NULL, NULL, types);
	second_fails = false;
	if (fails)
		return rc == -EDOM ? 0 : note_error("upgrade that fails", rc ? rc : -1);
	return note_error("upgrade", rc);
}

/* ---- callbacks ---- */

static int head_of(struct fixture *f, struct head **out)
{
	pv_type_t type;
	int rc = pv_type_register(f->store, &head_type, &type);

	if (!rc)
		rc = pv_root(f->store, "head", type, sizeof(struct head), (void **)out, NULL);
	return note_error("root", rc);
}

static int make_pair(struct fixture *f, const pv_type_t types[2], uint64_t key, struct head *head)
{
	struct account1 *account;
	struct owner1 *owner;
	int rc = pv_reserve(f->store, types[0], sizeof(*owner), (void **)&owner);

	if (!rc)
		rc = pv_reserve(f->store, types[1], sizeof(*account), (void **)&account);
	if (rc)
		return note_error("reserve", rc);
	*owner = (struct owner1){head->first, account, key};
	*account = (struct account1){sum_of(key), owner};
	return note_error("publish",
			  pv_publish(f->store,
				     (struct pv_action[]){PV_LIVE(owner), PV_LIVE(account),
							  PV_STORE(&head->first, (uintptr_t)owner)},
				     3));
}

static int set_up(void *ctx)
{
	struct fixture *f = ctx;
	pv_type_t types[2];
	struct head *head;
	int rc = fixture_setup_empty(ctx);

	if (!rc)
		rc = head_of(f, &head);
	if (!rc)
		rc = note_error("types", pv_type_register(f->store, &owners[1], &types[0]));
	if (!rc)
		rc = note_error("types", pv_type_register(f->store, &accounts[1], &types[1]));
	for (uint64_t key = 0; !rc && key < PAIRS; key++)
		rc = make_pair(f, types, key, head);
	/* Twice: all slabs are cold, and both slots of the index hold much the same. */
	if (!rc)
		rc = op_reattach(ctx, 0);
	return rc ? rc : op_reattach(ctx, 0);
}

static unsigned version_of(struct fixture *f, const struct pv_typedef *versions)
{
	pv_type_t type;

	for (unsigned v = 1; v <= 2; v++) {
		struct pv_typedef def = versions[v];

		def.upgrades = NULL;
		def.nupgrades = 0;
		if (pv_type_register(f->store, &def, &type) == 0)
			return v;
	}
	crash_note("type %s has no version: %s", versions[1].name, pv_last_error());
	return 0;
}

static bool whole(const void *object, unsigned version, uint64_t key, const void **next)
{
	const struct owner1 *one = object;
	const struct owner2 *two = object;

	if (version == 1) {
		*next = one->next;
		return one->key == key && one->account->owner == one && one->account->sum == sum_of(key);
	}
	*next = two->next;
	return two->key == key && two->sum == sum_of(key) && two->account->owner == two &&
	       two->account->key_and_sum == (key << 32 | sum_of(key));
}

static void tell(void *ctx, const char *line)
{
	crash_note("%s", line);
}

static uint64_t check(void *ctx)
{
	struct fixture *f = ctx;
	unsigned version = version_of(f, owners);
	struct pv_check_report report;
	const void *owner;
	struct head *head;

	/* Pointers name their targets' types: the first check is that these are right. */
	if (pv_check(f->store, PV_CHECK_TELL(tell, NULL), &report) != 0 || report.problems)
		return 0;
	if (!version || version_of(f, accounts) != version) {
		crash_note("owners have version %u, accounts another", version);
		return 0;
	}
	if (head_of(f, &head))
		return 0;
	owner = head->first;
	for (uint64_t key = PAIRS; key-- > 0;) {
		if (!owner || !whole(owner, version, key, &owner)) {
			crash_note("owner %u of version %u is not whole", (unsigned)key, version);
			return 0;
		}
	}
	if (owner || report.live_objects != 2 * PAIRS + 1 || report.leaked_objects) {
		crash_note("%u live objects, %u leaked", (unsigned)report.live_objects,
			   (unsigned)report.leaked_objects);
		return 0;
	}
	return 100 + version;
}

/* What the next program does after a crash. */
static int probe(void *ctx)
{
	int rc = op_upgrade(ctx, false);

	return rc ? rc : check(ctx) != 102 || op_reattach(ctx, 0) || check(ctx) != 102;
}

static const struct crash_op ops[] = {
	{"the second type fails", op_upgrade, true, CRASH_UNCHANGED, NULL},
	{"attach", op_reattach, 0, CRASH_UNCHANGED, NULL},
	{"both types 1 -> 2", op_upgrade, false, CRASH_ATOMIC, NULL},
	{"attach elsewhere", op_reattach, PV_RELOCATE_ALWAYS, CRASH_UNCHANGED, NULL},
};

static struct fixture fixture = {.lanes = 2};

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {{
		.name = "upgrade-several",
		.ctx = &fixture,
		.ops = ops,
		.n_ops = sizeof(ops) / sizeof(ops[0]),
		.setup = set_up,
		.recover = fixture_recover,
		.check = check,
		.close = fixture_close,
		.probe = probe,
		.any_order = true,
		.other_base = true,
	}};

	return crash_main(argc, argv, scenarios, 1);
}
