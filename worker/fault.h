/* SPDX-License-Identifier: MIT
 *
 * fault: named points where a test may kill or stall the worker. FAULT_POINT(name) is nothing
 * unless the build defines PGPT_FAULTS (CMake option of that name, preset `faults`); then the
 * environment's PGPT_FAULT=name:kill or name:stall:MILLISECONDS acts there, at every pass or, with
 * @N behind it, at the Nth alone; several are separated by commas. A job_id is the name of that
 * job's start on the device. Any thread.
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
