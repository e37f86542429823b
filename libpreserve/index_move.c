/* SPDX-License-Identifier: BSD-3-Clause */
/* The node of the index that names the tables of a move; see move.h. */
#include <errno.h>
#include <string.h>

#include <libfdt.h>

#include "index_fdt.h"
#include "internal.h"
#include "move.h"

void pvi_index_write_move(const struct pvi_index *idx, void *fdt, int *err)
{
	const struct pvi_index_move *move = &idx->move;
	fdt64_t *cells;

	if (!move->purpose)
		return;
	pvi_fdt_begin_group(fdt, err, "move");
	pvi_fdt_put_u32(fdt, err, "purpose", move->purpose);
	pvi_fdt_put_u64(fdt, err, "objects", move->objects);
	pvi_fdt_put_u64(fdt, err, "checksum", move->checksum);
	if (move->purpose == PV_MOVE_SEAL)
		pvi_fdt_put_u32(fdt, err, "seals", move->segment);
	cells = pvi_fdt_put_room(fdt, err, "tables", move->ntables * 16);
	for (uint32_t i = 0; cells && i < move->ntables; i++) {
		fdt64_st(&cells[2 * i], move->tables[i].off);
		fdt64_st(&cells[2 * i + 1], move->tables[i].objects);
	}
	pvi_fdt_end_node(fdt, err);
}

int pvi_index_read_move(struct pvi_index *idx, const void *fdt)
{
	struct pvi_fdt_node n = {.fdt = fdt, .off = fdt_subnode_offset(fdt, 0, "move")};
	struct pvi_index_move *move = &idx->move;
	const fdt64_t *cells;
	uint32_t bytes = 0;

	memset(move, 0, sizeof(*move));
	if (n.off == -FDT_ERR_NOTFOUND)
		return 0;
	move->purpose = pvi_fdt_get_u32(&n, "purpose");
	move->objects = pvi_fdt_get_u64(&n, "objects");
	move->checksum = pvi_fdt_get_u64(&n, "checksum");
	cells = pvi_fdt_get(&n, "tables", &bytes);
	if (!cells || !bytes || bytes % 16 || bytes / 16 > PV_MOVE_TABLES)
		pvi_fdt_fault(&n, "tables", "is not a list of places");
	if (move->purpose < PV_MOVE_COMPACT || move->purpose > PV_MOVE_SEAL)
		pvi_fdt_fault(&n, "purpose", "is unknown");
	if (move->purpose == PV_MOVE_SEAL) {
		move->segment = pvi_fdt_get_u32(&n, "seals");
		if (!move->segment || move->segment >= idx->nsegments ||
		    idx->segments[move->segment].sealed)
			pvi_fdt_fault(&n, "seals", "names no segment that can be sealed");
	}
	if (n.fault[0])
		return pvi_fdt_check(&n);
	move->ntables = bytes / 16;
	for (uint32_t i = 0; i < move->ntables; i++) {
		move->tables[i].off = fdt64_ld(&cells[2 * i]);
		move->tables[i].objects = fdt64_ld(&cells[2 * i + 1]);
	}
	return 0;
}
