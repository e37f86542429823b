/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Choice of the handover backend. AUTO takes what can do most: a service manager with a descriptor
 * store outlives everything, and a holder in its service does not; an agent is there where an
 * administrator has set one up (agent.c says when exactly); LUO carries a store across a kexec,
 * but its device is for root only and missing in most kernels; the holder needs nothing. LUO and holder
 * keep the descriptors in the same process, so a store made with one is found with the other.
 */
#include <errno.h>

#include "error.h"
#include "handover.h"

static int open_auto(const char *store_name, const struct pv_options *opts, struct pvi_handover **out)
{
	if (pvi_systemd_usable(store_name))
		return pvi_systemd_open(store_name, opts, out);
	if (pvi_agent_preferred(store_name, opts))
		return pvi_agent_open(store_name, opts, out);
	if (pvi_luo_available() == 0)
		return pvi_luo_open(store_name, opts, out);
	return pvi_holder_open(store_name, opts, out);
}

/* The holder is a process of ours, and a service's processes end together (KillMode=). */
static int warn(int err, struct pvi_handover *const *h)
{
	if (!err && ((*h)->ops->kind == PV_HANDOVER_HOLDER || (*h)->ops->kind == PV_HANDOVER_LUO) &&
	    pvi_systemd_in_service())
		(*h)->warnings |= PV_WARN_HOLDER_IN_SERVICE;
	return err;
}

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
		return warn(open_auto(store_name, opts, out), out);
	case PV_HANDOVER_HOLDER:
		return warn(pvi_holder_open(store_name, opts, out), out);
	case PV_HANDOVER_LUO:
		return warn(pvi_luo_open(store_name, opts, out), out);
	case PV_HANDOVER_SYSTEMD:
		return pvi_systemd_open(store_name, opts, out);
	case PV_HANDOVER_AGENT:
		return pvi_agent_open(store_name, opts, out);
	case PV_HANDOVER_NONE:
		return pvi_caller_open(opts, out);
	default:
		return pvi_fail(-EINVAL, "pv_options.handover is %u, which is no backend", kind);
	}
}
