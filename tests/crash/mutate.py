#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes a copy of a source file of the library with one bug put into it.

    mutate.py MUTANT INPUT OUTPUT    write the mutated file
    mutate.py --list                 "MUTANT FILE TEST SCENARIO" for each

The crash sweeps, or where the test is `storm` the kill storm, must find every one of these bugs; one
that they do not find is a hole in them.
A bug is an exact replacement. When the library has changed so that the text is not there any more, the
output is the unchanged file with a symbol that makes the test say so: then write the bug down anew.
"""

import sys

# name: (file, test program, scenario, [(old, new), ...])
MUTANTS = {
    # The lane is idle before the intent was done.
    'lane-ends-early': ('lane.c', 'store', 'roots', [(
        '''	for (unsigned int i = 0; i < n; i++)
		pvi_lane_apply(s, &lane->actions[i]);
	pvi_lane_end(lane);
''', '''	pvi_lane_end(lane);
	for (unsigned int i = 0; i < n; i++)
		pvi_lane_apply(s, &lane->actions[i]);
''')]),
    # The same in recovery: only a crash inside recovery shows it.
    'recovery-ends-early': ('lane.c', 'heap', 'publish', [(
        '''		for (uint64_t k = 0; k < lane->count; k++)
			pvi_lane_apply(s, &lane->actions[k]);
		pvi_lane_end(lane);
''', '''		uint64_t n = lane->count;

		pvi_lane_end(lane);
		for (uint64_t k = 0; k < n; k++)
			pvi_lane_apply(s, &lane->actions[k]);
''')]),
    # An intent of which recovery does not do the last action.
    'recovery-stops-short': ('lane.c', 'heap', 'publish', [(
        'for (uint64_t k = 0; k < lane->count; k++)\n			pvi_lane_apply',
        'for (uint64_t k = 0; k + 1 < lane->count; k++)\n			pvi_lane_apply')]),
    # Publishing without an intent, in the general form and in the straight line.
    'publish-without-intent': ('publish.c', 'heap', 'publish', [(
        '	pvi_lane_begin(t->lane, n);\n', '')]),
    'link-without-intent': ('publish.c', 'heap', 'publish', [(
        '	pvi_lane_link_begin(commit, word);\n', '')]),
    # The straight line's intent is valid before it is whole; is void before it is done.
    'link-valid-early': ('publish.c', 'heap', 'publish', [(
        '	__atomic_store_n(&link->object, (uintptr_t) object, __ATOMIC_RELAXED);\n', ''), (
        '	pvi_lane_link_begin(commit, word);\n', '''	pvi_lane_link_begin(commit, word);
	__atomic_store_n(&link->object, (uintptr_t) object, __ATOMIC_RELAXED);
	pvi_barrier();
''')]),
    'link-ends-early': ('publish.c', 'heap', 'publish', [(
        '''	if (what & FREES)
		__atomic_store_n(gone, PV_SLOT_HELD, __ATOMIC_RELEASE);
	pvi_lane_link_end(commit);
''', '''	pvi_lane_link_end(commit);
	if (what & FREES)
		__atomic_store_n(gone, PV_SLOT_HELD, __ATOMIC_RELEASE);
''')]),
    # An object that was never linked stays live; only a crash between its slot byte and the word shows it.
    'link-not-undone': ('lane.c', 'heap', 'publish', [(
        '		*link_slot(s, link->object) = done ? PV_SLOT_LIVE : PV_SLOT_FREE;\n',
        '		*link_slot(s, link->object) = PV_SLOT_LIVE;\n')]),
    # Recovery is over before it has done what follows.
    'link-recovery-ends-early': ('lane.c', 'heap', 'publish', [(
        '	bool done = *word == (link->word_object ? link->object : link->value);\n',
        '''	bool done = *word == (link->word_object ? link->object : link->value);

	pvi_lane_link_end(commit);
''')]),
    # A slab is in the page map before it is formatted.
    'slab-before-format': ('slab.c', 'heap', 'reserve', [(
        '	slab_format(s, seg, page, rec);\n', ''), (
        '	describe_pages(s, seg, page, rec);\n\n	d = &seg',
        '	slab_format(s, seg, page, rec);\n	describe_pages(s, seg, page, rec);\n\n	d = &seg')]),
    # The index says that a relocation is done before it is.
    'relocation-done-early': ('relocate.c', 'relocate', 'relocate', [(
        '	int err = pvi_relocate_pass(s, dangling, &result), back;\n',
        '''	uint32_t moving = s->index.nmoving;
	int err = arrived(s), back;

	s->index.nmoving = moving;
	err = pvi_relocate_pass(s, dangling, &result);
''')]),
    # Of an interrupted relocation only the last of the windows is known.
    'relocation-one-window': ('relocate_pass.c', 'relocate', 'relocate', [(
        'for (uint32_t i = 0; i < idx->nmoving; i++) {\n		uint64_t off',
        'for (uint32_t i = idx->nmoving - 1; i < idx->nmoving; i++) {\n		uint64_t off')]),
    # A root is named before it is live.
    'root-in-two-steps': ('root.c', 'store', 'roots', [(
        '''	t->lane->actions[1].where = pvi_lane_where(PV_DO_FLIP, 0);
	t->lane->actions[1].value = generation;
	pvi_lane_run(s, t->lane, 2);
''', '''	pvi_index_commit(&s->index, generation);
	pvi_lane_run(s, t->lane, 1);
''')]),
    # The next process does not make the new objects live ...
    'move-without-objects': ('move_redo.c', 'move', 'slabs', [(
        'm->recs[i].new_rec, true);', 'm->recs[i].new_rec, m->t != NULL);')]),
    # ... or forgets the roots among them.
    'move-without-roots': ('move_redo.c', 'move', 'segments', [(
        '	move_roots(m);\n', '	if (m->t)\n		move_roots(m);\n')]),
    # A move that was committed is not finished by whoever comes next.
    'move-not-finished': ('attach.c', 'move', 'slabs', [(
        '		pvi_move_redo(&move);\n', '		s->index.move.purpose = 0;\n')]),
    # The next process does not change what refers to the objects.
    'move-without-references': ('move_redo.c', 'move', 'segments', [(
        '	visit_all(&v);\n', '	if (m->t)\n		visit_all(&v);\n')]),
    # The next process takes the digest of what is sealed before the references in it are right.
    'seal-digest-early': ('move_redo.c', 'move', 'seal', [(
        '	if (m->purpose == PV_MOVE_SEAL)\n', '	if (m->purpose == PV_MOVE_SEAL && m->t)\n'), (
        '	visit_all(&v);\n', '''	if (m->purpose == PV_MOVE_SEAL && !m->t)
		pvi_seal_record(m->s, m->segment);
	m->s->segments[m->segment].sealed = false;
	visit_all(&v);
''')]),
    # Old objects are in circulation before the index says that they were moved.
    'move-settled-early': ('move.c', 'move', 'slabs', [(
        '	pvi_move_redo(m);\n', '	pvi_move_redo(m);\n	settle(m);\n'), (
        '	if (!err)\n		settle(m);\n', '')]),
    # There are slabs of a new layout before the index knows it.
    'upgrade-draft-unnamed': ('upgrade.c', 'upgrade', 'upgrade-chain', [(
        '''	if (!err)
		pvi_index_commit(&s->index, generation);
	for (; err && placed''', '	for (; err && placed')]),
    # A new layout is found by its name before its objects are in force.
    'upgrade-draft-in-use': ('upgrade.c', 'upgrade', 'upgrade-again', [(
        '		c->layout.state = PVI_TYPE_DRAFT;\n', '')]),
    # The objects are in force before their layout is.
    'upgrade-types-late': ('upgrade.c', 'upgrade', 'upgrade-root', [(
        '''	change_types(j, true);
	err = commit(j);
	if (err)
		change_types(j, false);
	else
''', '''	err = commit(j);
	change_types(j, err == 0);
	if (!err)
''')]),
    # The index names a segment that nobody keeps yet.
    'segment-named-first': ('segment.c', 'store', 'grow', [(
        '''	if (!err)
		err = s->handover->ops->keep(s->handover, number + 1ull, seg->fd);
	pvi_pin_end(pin);
''', '''	pvi_pin_end(pin);
'''), (
        '''	pvi_segment_publish(s, number);
	return 0;
}

static int grow(''', '''	err = s->handover->ops->keep(s->handover, number + 1ull, seg->fd);
	if (err)
		return err;
	pvi_segment_publish(s, number);
	return 0;
}

static int grow(''')]),
    # The index is kept before the segment that it names.
    'index-kept-first': ('store.c', 'store', 'create', [(
        '''	err = s->handover->ops->keep(s->handover, 1, s->segments[0].fd);
	if (!err)
		err = s->handover->ops->keep(s->handover, 0, s->index.fd);
''', '''	err = s->handover->ops->keep(s->handover, 0, s->index.fd);
	if (!err)
		err = s->handover->ops->keep(s->handover, 1, s->segments[0].fd);
''')]),
    # An index is in force before it is written.
    'index-in-force-early': ('index_slot.c', 'store', 'index', [(
        '	memcpy(slot + 1, tree, bytes);\n	slot->bytes = bytes;\n	slot->checksum',
        '	__atomic_store_n(&idx->rec->commit, pvi_index_commit_word(idx->rec->uuid, generation), 5);\n'
        '	memcpy(slot + 1, tree, bytes);\n	slot->bytes = bytes;\n	slot->checksum')]),
    # The mirror takes the place of the index in force before the new one is.
    'mirror-before-commit': ('index_slot.c', 'store', 'index', [(
        '''	pvi_barrier();
	__atomic_store_n(&idx->rec->commit''', '''	copy_slot(idx->rec, ~generation & 1);
	pvi_barrier();
	__atomic_store_n(&idx->rec->commit''')]),
    # A transaction's log is valid before its entry is there.
    'tx-log-valid-early': ('tx.c', 'tx', 'tx', [(
        '''	t->tx.end += need;
	set_word(t->lane, PV_TX_ACTIVE, t->tx.chunk, t->tx.end);
''', '	t->tx.end += need;\n'), (
        '''	at = t->tx.log + t->tx.end;
	*(struct tx_entry_rec *)''', '''	at = t->tx.log + t->tx.end;
	set_word(t->lane, PV_TX_ACTIVE, t->tx.chunk, t->tx.end + need);
	*(struct tx_entry_rec *)''')]),
    # A commit that is not recorded before its actions are done.
    'tx-commit-unrecorded': ('tx.c', 'tx', 'tx', [(
        '	set_word(t->lane, PV_TX_COMMITTED, t->tx.chunk, t->tx.end);\n', '')]),
    # A rollback that is over before the ranges are back.
    'tx-rollback-ends-early': ('tx.c', 'tx', 'tx', [(
        '''		if ((lane->tx & 3) == PV_TX_ACTIVE)
			put_back(s, lane);
		else
			finish(s, lane);
		set_word(lane, PV_TX_NONE, 0, 0);
''', '''		struct lane_rec copy = *lane;

		set_word(lane, PV_TX_NONE, 0, 0);
		if ((copy.tx & 3) == PV_TX_ACTIVE)
			put_back(s, &copy);
		else
			finish(s, &copy);
''')]),
    # The new bucket is linked to overflow buckets before these are live.
    'split-links-early': ('map_grow.c', 'map', 'map-crowd', [(
        'return first ? map_change_push(change, PV_STORE(&b->next, (uintptr_t)first)) : 0;',
        'b->next = first;\n	return 0;')]),
    # What was freed is in circulation while the lane still says that it is to be freed.
    'settled-early': ('publish.c', 'others', 'extent-link', [(
        '''	pvi_lane_end(t->lane);
	for (unsigned int i = 0; i < n; i++) {
		if (actions[i].op != PV_ACTION_STORE)
''', '''	for (unsigned int i = 0; i < n; i++) {
		if (actions[i].op != PV_ACTION_STORE)
'''), (
        '''	if (retired)
		pvi_retire_hand_over(s, t);
''', '''	pvi_lane_end(t->lane);
	if (retired)
		pvi_retire_hand_over(s, t);
''')]),
    # Recovery does less than it should: a kill in the right place is enough.
    'storm-recovery-stops-short': ('lane.c', 'storm', '-', [(
        'for (uint64_t k = 0; k < lane->count; k++)\n			pvi_lane_apply',
        'for (uint64_t k = 0; k + 1 < lane->count; k++)\n			pvi_lane_apply')]),
    # Two threads have the same lane.
    'storm-lane-shared': ('thread.c', 'storm', '-', [(
        '	s->lane_uses[i].taken = true;\n', '')]),
    # A thread that ends does not abort its transaction.
    'storm-tx-left-open': ('thread.c', 'storm', '-', [(
        '			pvi_tx_leave(t->store, t);\n', '')]),
    # What is retired does not wait for readers.
    'storm-no-grace-period': ('retire.c', 'storm', '-', [(
        '			r->flavor->update_call_rcu(&b->head, grace_period_over);\n',
        '			grace_period_over(&b->head);\n')]),
    # A thread takes slots from slabs without the lock.
    'storm-refill-without-lock': ('heap.c', 'storm', '-', [(
        '''		pthread_mutex_lock(&s->heap_lock);
		err = pvi_slab_refill(s, t, type, class, m);
		if (!err)
			pvi_depot_refilled(m);
		pthread_mutex_unlock(&s->heap_lock);
''', '		err = pvi_slab_refill(s, t, type, class, m);\n')]),
    # A split that first makes the new bucket visible.
    'split-in-two-steps': ('map_grow.c', 'map', 'map-grow', [(
        '''	if (!err)
		err = map_change_push(&change, PV_STORE(&rec->nbuckets, number + 1));
	err = finish_change(&change, err);
	if (err == -E2BIG)''', '''	rec->nbuckets = number + 1;
	err = finish_change(&change, err);
	if (err == -E2BIG)''')]),
    # What is retired is handed over before the intent is done: another thread has it by then, and the
    # intent, or recovery, frees it there.
    'retired-too-early': ('publish.c', 'retire', 'warm-retire-reclaim', [(
        '''	if (retired)
		pvi_retire_hand_over(s, t);
	return 0;
''', '''	return 0;
'''), (
        '''	pvi_lane_begin(t->lane, n);
	for (unsigned int i = 0; i < n; i++)
		pvi_heap_apply''', '''	pvi_lane_begin(t->lane, n);
	for (unsigned int i = 0; i < n; i++)
		if (actions[i].op == PV_ACTION_RETIRE) {
			pvi_retire_note(s, t, actions[i].target, objects[i].byte);
			retired = true;
		}
	if (retired)
		pvi_retire_hand_over(s, t);
	for (unsigned int i = 0; i < n; i++)
		pvi_heap_apply'''), (
        '''		if (actions[i].op != PV_ACTION_STORE)
			pvi_heap_settle(s, t, &actions[i], &objects[i]);
		retired''', '''		if (actions[i].op != PV_ACTION_STORE && actions[i].op != PV_ACTION_RETIRE)
			pvi_heap_settle(s, t, &actions[i], &objects[i]);
		retired''')]),
    # An extent shrinks in two intents: first it, then the pages that it leaves.
    'shrink-in-two-intents': ('object.c', 'object', 'realloc-extents', [(
        '''	a[1].where = pvi_lane_where(PV_DO_PAGES, off + ((uint64_t) n << s->page_shift));
	a[1].value = pvi_rec_free(had - n);
	pvi_lane_run(s, t->lane, 2);
''', '''	pvi_lane_run(s, t->lane, 1);
	a[0].where = pvi_lane_where(PV_DO_PAGES, off + ((uint64_t) n << s->page_shift));
	a[0].value = pvi_rec_free(had - n);
	pvi_lane_run(s, t->lane, 1);
''')]),
    # It grows without an intent.
    'grow-without-intent': ('object.c', 'object', 'realloc-extents', [(
        '	pvi_lane_run(s, t->lane, 1);\n	return true;\n',
        '	pvi_lane_apply(s, &t->lane->actions[0]);\n	return true;\n')]),
    # The pages that it leaves are in circulation while the lane still says that they become free.
    'shrunk-pages-early': ('object.c', 'trim_threads', 'shrink-link', [(
        '''	pvi_lane_run(s, t->lane, 2);
	pthread_mutex_lock(&s->heap_lock);
	pvi_page_free(s, o->seg, page + n, had - n);
	pthread_mutex_unlock(&s->heap_lock);
''', '''	pvi_lane_begin(t->lane, 2);
	pvi_lane_apply(s, &a[0]);
	pvi_lane_apply(s, &a[1]);
	pthread_mutex_lock(&s->heap_lock);
	pvi_page_free(s, o->seg, page + n, had - n);
	pthread_mutex_unlock(&s->heap_lock);
	pvi_lane_end(t->lane);
''')]),
    # An object that moves is freed before its place is the new one's.
    'move-in-two-steps': ('object.c', 'object', 'realloc', [(
        '	err = pv_replace(s, fresh, dest, object);\n',
        '	err = pv_link(s, fresh, dest);\n	if (!err)\n'
        '		err = pv_publish(s, &PV_FREE(object), 1);\n')]),
    # A segment is dropped while the index still names it.
    'segment-dropped-first': ('trim.c', 'trim', 'segments', [(
        '''	pthread_mutex_lock(&s->index_lock);
	s->index.nsegments = number;
''', '''	s->handover->ops->drop(s->handover, number + 1ull);
	pthread_mutex_lock(&s->index_lock);
	s->index.nsegments = number;
'''), (
        '''	/* If it does not work, the next attach does it. */
	s->handover->ops->drop(s->handover, number + 1ull);
''', '')]),
    # What the index does not name is kept on.
    'stray-kept': ('attach.c', 'trim', 'segments', [(
        '''		if (fds[i].fd >= 0)
			s->handover->ops->drop(s->handover, fds[i].token);
''', '''		if (fds[i].fd >= 0 && i == 0)
			s->handover->ops->drop(s->handover, fds[i].token);
''')]),
    # A release without an intent.
    'release-without-intent': ('slab.c', 'trim', 'slabs', [(
        '''	t->lane->actions[0].value = pvi_rec_free(c->npages);
	pvi_lane_run(s, t->lane, 1);
''', '''	t->lane->actions[0].value = pvi_rec_free(c->npages);
	pvi_lane_apply(s, &t->lane->actions[0]);
''')]),
    # A lock does not look at the epoch.
    'lock-outlives-process': ('lockword.c', 'lock', 'locked-swaps', [(
        '''	return (word & PV_LOCK_OWNER_MASK) &&
	       word >> PV_LOCK_EPOCH_SHIFT ==
		       s->index.epoch << PV_LOCK_EPOCH_SHIFT >> PV_LOCK_EPOCH_SHIFT;
''', '''	return (word & PV_LOCK_OWNER_MASK) != 0;
''')]),
}


def mutate(name, source, target):
    with open(source, encoding='utf-8') as f:
        text = f.read()
    stale = False
    mutated = text
    for old, new in MUTANTS[name][3]:
        stale |= mutated.count(old) != 1
        mutated = mutated.replace(old, new)
    if stale:
        mutated = text + '\nextern const char crash_mutant_is_stale[];\n' \
                         'const char crash_mutant_is_stale[] = "%s";\n' % name
    with open(target, 'w', encoding='utf-8') as f:
        f.write(mutated)


def main():
    if sys.argv[1:] == ['--list']:
        for name, (source, test, scenario, _) in MUTANTS.items():
            print(name, source, test, scenario)
    elif len(sys.argv) == 4 and sys.argv[1] in MUTANTS:
        mutate(*sys.argv[1:])
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main()
