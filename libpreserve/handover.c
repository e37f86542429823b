/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Choice of the handover backend. AUTO takes what can do most: LUO carries a store across a kexec,
 * but its device is for root only and missing in most kernels; the holder needs nothing. Both keep
 * the descriptors in the same holder process, so a store made with one is found with the other.
 */
#include <errno.h>

#include "error.h"
#include "handover.h"

int pvi_handover_open(const char *store_name, const struct pv_options *opts,
		      struct pvi_handover **out)
{
	uint32_t kind = opts->handover;

	if (kind != PV_HANDOVER_NONE && (opts->nfds > 0 || opts->keep))
		return pvi_fail(-EINVAL,
				"pv_options.fds and .keep are for PV_HANDOVER_NONE, handover is %u",
				kind);
	switch (kind) {
	case PV_HANDOVER_AUTO:
		return pvi_luo_available() == 0 ? pvi_luo_open(store_name, opts, out)
						: pvi_holder_open(store_name, opts, out);
	case PV_HANDOVER_HOLDER:
		return pvi_holder_open(store_name, opts, out);
	case PV_HANDOVER_LUO:
		return pvi_luo_open(store_name, opts, out);
	case PV_HANDOVER_NONE:
		return pvi_caller_open(opts, out);
	default:
		return pvi_fail(-EINVAL, "pv_options.handover is %u, which is no backend", kind);
	}
}
