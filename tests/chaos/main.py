# SPDX-License-Identifier: MIT
"""Breaks everything, then checks everything.

  tests/chaos/run --runs 3 --seed 7                      three runs, faults of every kind
  tests/chaos/run --runs 1 --seed 7 --faults kill,pause  only these
  tests/chaos/run --runs 20 --brokers 3 --minutes 60     stop starting runs after an hour

Each run starts brokers, PostgreSQL and 2-3 workers in a directory of its own, sends requests with
duplicates, junk, bad requests and cancels, injects faults drawn from the seed, lets the system recover
and checks the complete logs. One line a run; the last line is `runs R, jobs J, faults F, violations V`.
The exit code is 0 only with V = 0. A violation names the job, the seed and the command that runs the
same again. Needs the build with fault points: cmake --preset faults && cmake --build --preset faults."""
import argparse
import json
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from faults import FAULTS, POINTS # noqa: E402 (network, which it imports, lies there)
from trial import NOT_STARTED, ROOT, Trial # noqa: E402


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("--seed", type=int, default=None, help="of the first run, the next has the next; default: from the clock")
    p.add_argument("--faults", default=",".join(FAULTS), help="of: " + ", ".join(FAULTS))
    p.add_argument("--points", default=",".join(sorted(POINTS)), help="of worker/fault.h, for `point` and `stall`: %(default)s")
    p.add_argument("--minutes", type=float, default=None, help="start no further run after this long")
    p.add_argument("--seconds", type=float, default=20, help="of load and faults in a run (20)")
    p.add_argument("--rate", type=float, default=15, help="requests a second (15)")
    p.add_argument("--pace", type=float, default=1.5, help="mean seconds between two faults (1.5)")
    p.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    p.add_argument("--partitions", type=int, default=6)
    p.add_argument("--session", type=int, default=6000, help="group session timeout, ms (6000)")
    p.add_argument("--recovery", type=float, default=120, help="seconds to recover in (120)")
    p.add_argument("--no-database", action="store_true")
    p.add_argument("--device", default="cpu", help="the engine's: cpu or cuda:N (cpu); for a GPU the build needs PGPT_CUDA=ON too")
    p.add_argument("--build", default=str(ROOT / "build-faults"), help="directory of the programs under test (build-faults)")
    p.add_argument("--record", help="append a JSON line for each run to this file")
    p.add_argument("--keep", action="store_true", help="keep the directory of clean runs too")
    args = p.parse_args(argv)
    args.faults = [f for f in args.faults.split(",") if f]
    unknown = set(args.faults) - set(FAULTS)
    if unknown:
        p.error(f"unknown faults {sorted(unknown)}; known: {', '.join(FAULTS)}")
    args.points = args.points.split(",")
    if set(args.points) - set(POINTS):
        p.error(f"unknown points {sorted(set(args.points) - set(POINTS))}; known: {', '.join(POINTS)}")
    return args


def replay_command(argv, seed):
    """The same command line for this run alone."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--runs", "--seed", "--minutes", "--record"):
            skip = True
        elif not word.startswith(("--runs=", "--seed=", "--minutes=", "--record=")):
            kept.append(word)
    return " ".join(["tests/chaos/run", "--runs 1", f"--seed {seed}", *kept])


def run_once(args, seed):
    trial = Trial(args, seed)
    try:
        return trial, trial.execute()
    except Exception: # a harness that fails is no proof: it counts as a violation, with its logs kept
        return trial, trial.broken(traceback.format_exc())
    finally:
        trial.stop()


def show(n, seed, trial, verdict, args):
    print(f"run {n + 1} seed {seed}: jobs {verdict.jobs}, faults {verdict.faults}, "
          f"violations {len(verdict.violations)}, {verdict.note}", flush=True)
    for v in verdict.violations[:20]:
        print(f"  VIOLATION seed {seed}: {v}", flush=True)
    for v in verdict.excused[:20]:
        print(f"  BROKER'S seed {seed}: {v}", flush=True)
    if len(verdict.violations) > 20:
        print(f"  and {len(verdict.violations) - 20} more")
    if verdict.violations:
        print(f"  again: {replay_command(sys.argv[1:], seed)}")
    if verdict.violations or verdict.excused or args.keep or trial.hung:
        print(f"  logs: {trial.directory}", flush=True)
    else:
        shutil.rmtree(trial.directory, ignore_errors=True)
    if args.record and verdict.note != NOT_STARTED: # a campaign tries it again
        with open(args.record, "a", encoding="utf-8") as out:
            out.write(json.dumps({"seed": seed, "brokers": args.brokers, "faults": trial.counts, "jobs": verdict.jobs,
                                  "violations": [v.rule for v in verdict.violations],
                                  "brokers_violations": [v.rule for v in verdict.excused], **verdict.figures}) + "\n")


def main():
    args = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler) # a run's end stops what it started
    first = args.seed if args.seed is not None else int(time.time())
    begun, jobs, faults, violations, runs = time.time(), 0, 0, 0, 0
    for n in range(args.runs):
        if args.minutes and time.time() - begun > args.minutes * 60:
            break
        trial, verdict = run_once(args, first + n)
        show(n, first + n, trial, verdict, args)
        runs, jobs, faults = runs + 1, jobs + verdict.jobs, faults + verdict.faults
        violations += len(verdict.violations)
    print(f"runs {runs}, jobs {jobs}, faults {faults}, violations {violations}")
    sys.exit(1 if violations or not runs else 0)


if __name__ == "__main__":
    main()
