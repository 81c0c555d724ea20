# SPDX-License-Identifier: MIT
"""A long run under constant faults: everything that tests/chaos/run checks, and that the memory, file handles and
threads of a worker do not grow. One worker is never killed or drained, but cut off, paused and left without
brokers and database like the others.

  tests/chaos/soak                       30 minutes
  tests/chaos/soak --minutes 5 --seed 3

Compared are medians of the second tenth to the fourth (after it has met most things once) and of the last two
tenths of the life of the process that lived longest. The samples are left in soak-SEED.jsonl. Exit code 1 when something grew or a guarantee broke."""
import argparse
import json
import os
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

import main as harness
from bounds import Sampler
from faults import FAULTS, Injector
from trial import Trial

MET_BY_ALL = ("pause", "cut", "delay", "reset", "clock") # faults that the steady worker meets too
ALLOWED = {"rss": 8, "handles": 6, "threads": 4} # MB over what caches fill up to; connections and clients under way
SAMPLE_S = 2


def kinds_of_handles(pid):
    """What a number of handles is made of, should it grow: sockets, pipes, eventfds, files."""
    return Counter(os.readlink(handle.path).split(":")[0] for handle in os.scandir(f"/proc/{pid}/fd"))


class SteadyInjector(Injector):
    """Kills and drains others than the first worker; samples all of them."""

    def __init__(self, *how):
        super().__init__(*how)
        self.samples, self.next_look = defaultdict(list), 0

    def pick_worker(self):
        if self.fault in MET_BY_ALL:
            return super().pick_worker()
        up = [w for w in self.run.workers[1:] if w.wanted and w.alive and not w.stopped]
        return self.rng.choice(up) if up else None

    def go_on(self, now):
        super().go_on(now)
        if now < self.next_look:
            return
        self.next_look = now + SAMPLE_S
        for worker in self.run.workers:
            if worker.alive and not worker.stopped:
                try:
                    self.samples[worker.name, worker.child.pid].append(
                        {"at": now, **Sampler.look(worker.child.pid), "kinds": kinds_of_handles(worker.child.pid)})
                except (OSError, KeyError):
                    pass # it has just ended


class Soak(Trial):
    injector_class = SteadyInjector


def growth(samples):
    """name -> (early, late) medians."""
    n = len(samples)
    early, late = samples[n // 10:4 * n // 10], samples[8 * n // 10:]
    return {name: tuple(statistics.median(s[name] for s in part) for part in (early, late)) for name in ALLOWED}


def judge(samples, file):
    """Prints the verdict; all samples are kept in a file, a line a process."""
    file.write_text("".join(json.dumps({"worker": name, "samples": own}) + "\n" for (name, _pid), own in samples.items()))
    (name, _pid), longest = max(samples.items(), key=lambda item: item[1][-1]["at"] - item[1][0]["at"])
    lived = longest[-1]["at"] - longest[0]["at"]
    found = growth(longest)
    grown = [key for key, (early, late) in found.items() if late - early > ALLOWED[key]]
    text = ", ".join(f"{key} {early:.0f} -> {late:.0f}" for key, (early, late) in found.items())
    print(f"soak: {name} lived {lived / 60:.1f} min: {text}{'; GREW: ' + ', '.join(grown) if grown else ''}")
    return not grown


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--rate", type=float, default=8)
    p.add_argument("--pace", type=float, default=12)
    p.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    args = p.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler) # the run's end stops what it started
    faults = ",".join(name for name in FAULTS if name not in ("poison", "postgres_outage"))
    run = harness.parse(["--seconds", str(args.minutes * 60), "--rate", str(args.rate), "--pace", str(args.pace), "--brokers",
                         str(args.brokers), "--faults", faults, "--recovery", "600"])
    trial = Soak(run, args.seed)
    try:
        verdict = trial.execute()
    except Exception: # a harness that fails is no proof
        verdict = trial.broken(traceback.format_exc())
    finally:
        trial.stop()
    harness.show(0, args.seed, trial, verdict, run)
    steady = bool(trial.injector) and judge(trial.injector.samples, Path(f"soak-{args.seed}.jsonl"))
    sys.exit(0 if steady and not verdict.violations else 1)


if __name__ == "__main__":
    main()
