/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Death, of this process or of its holder, or a standstill, at a chosen step of a handover
 * operation. A step is the moment before or after a call that others can notice: to the kernel's
 * Live Update Orchestrator, to the holder, or a write to the session's manifest. The calls are
 * intercepted at link time (--wrap).
 */
#ifndef TEST_STEPS_H
#define TEST_STEPS_H

/** What happens at the chosen step. */
enum step_action {
	STEP_DIE,   /* SIGKILL */
	STEP_STAND, /* wait for ever: alive, but nothing more is done */
	STEP_KILL,  /* SIGKILL the holder at steps_socket, and go on */
};

/** Act at the number-th step from now on, counted from 1; 0: never. */
void steps_arm(unsigned int number, enum step_action action);
/** How many steps there were since. */
unsigned int steps_count(void);
/** Path of the socket of the holder that STEP_KILL is for. */
extern const char *steps_socket;

#endif
