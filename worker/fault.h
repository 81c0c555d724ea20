/* SPDX-License-Identifier: MIT
 *
 * fault: named points where a test may kill or stall the worker, or make a call fail.
 * FAULT_POINT(name) is nothing, and FAULT_FAILS(name) false, unless the build defines PGPT_FAULTS
 * (CMake option of that name, preset `faults`); then the environment's PGPT_FAULT=name:kill,
 * name:stall:MILLISECONDS or name:fail acts there, at every pass or, with @N behind it, at the Nth
 * alone; several are separated by commas. A job_id is the name of that job's start on the device.
 * A short stall at "step" paces the engine.
 * Any thread.
 */
#ifndef PGPT_WORKER_FAULT_H
#define PGPT_WORKER_FAULT_H

#ifdef PGPT_FAULTS
#include <stdbool.h>
bool fault_point(const char *name); /* true: fail here */
#define FAULT_POINT(name) ((void)fault_point(name))
#define FAULT_FAILS(name) fault_point(name)
#else
#define FAULT_POINT(name) ((void)0)
#define FAULT_FAILS(name) 0
#endif

#endif
