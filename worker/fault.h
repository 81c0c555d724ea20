/* SPDX-License-Identifier: MIT
 *
 * fault: named points where a test may kill or stall the worker. FAULT_POINT("name") is nothing
 * unless the build defines PGPT_FAULTS; then PGPT_FAULT=name:kill or name:stall:MILLISECONDS (several
 * separated by commas, name:kill@N for the Nth pass) acts there. Any thread.
 */
#ifndef PGPT_WORKER_FAULT_H
#define PGPT_WORKER_FAULT_H

#ifdef PGPT_FAULTS
void fault_point(const char *name);
#define FAULT_POINT(name) fault_point(name)
#else
#define FAULT_POINT(name) ((void)0)
#endif

#endif
