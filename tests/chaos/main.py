# SPDX-License-Identifier: MIT
"""Breaks everything, then checks everything.

  tests/chaos/run --runs 3 --seed 7                      three runs, faults of every kind
  tests/chaos/run --runs 1 --seed 7 --faults kill,pause  only these
  tests/chaos/run --runs 20 --brokers 3 --minutes 60     stop starting runs after an hour

Each run starts brokers, PostgreSQL and 2-4 workers in a directory of its own, sends requests with
duplicates, junk and cancels, injects faults drawn from the seed, lets the system recover and checks
the complete logs. One line a run; the last line is `runs R, jobs J, faults F, violations V`. The exit
code is 0 only with V = 0. A violation names the job and the seed: `--runs 1 --seed SEED` replays it."""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checker
from faults import FAULTS, Injector
from load import Load
from cluster import ROOT, Kafka, Postgres, Worker # load puts tests/lib on the path
from reader import read_everything, recorded_rows


def reference_texts(binary_dir, jobs):
    """The texts of an undisturbed run: the engine alone, one request after the other."""
    lines = "\n".join(json.dumps(j, ensure_ascii=False) for j in jobs) + "\n"
    done = subprocess.run([str(binary_dir / "pgpt-engine"), "generate", "--model", str(ROOT / "models/prometheus-mini"),
                           "--device", "cpu", "--threads", "1"], input=lines, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return {r["job_id"]: [s["text"] for s in r["sequences"]] for r in results}


class Run:
    def __init__(self, args, seed):
        self.args, self.seed = args, seed
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix=f"pgpt-chaos-{seed}-"))
        os.chmod(self.directory, 0o755)
        self.bin = Path(args.build).resolve()
        self.kafka = Kafka(self.directory, args.brokers)
        self.postgres = None if args.no_database else Postgres(self.directory)
        self.workers = []
        self.names = 0

    def worker_env(self):
        env = {"PGPT_BROKERS": self.kafka.bootstrap, "PGPT_MODEL": str(ROOT / "models/prometheus-mini"),
               "PGPT_ENGINE_THREADS": "1", "PGPT_HTTP_PORT": "0", "PGPT_LOG_LEVEL": "info",
               "PGPT_WORKER_DRAIN_MS": "8000"}
        if self.postgres:
            env["PGPT_DATABASE_URL"] = self.postgres.url
        else:
            env["PGPT_RECORDER_ENABLED"] = "false"
        return env

    def add_worker(self):
        self.names += 1
        worker = Worker(f"w{self.names}", self.directory, self.worker_env(), self.bin / "pgpt-worker")
        worker.start()
        self.workers.append(worker)
        return worker

    def start(self):
        self.kafka.start()
        subprocess.run([str(self.bin / "pgpt"), "topics", "--create", "--partitions", str(self.args.partitions),
                        "--replication", "3" if self.args.brokers == 3 else "1"], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "PGPT_BROKERS": self.kafka.bootstrap})
        if self.postgres:
            self.postgres.start()
            self.postgres.create()
        for _ in range(self.rng.randint(2, 4)):
            self.add_worker()

    def stop(self):
        for worker in self.workers:
            worker.kill()
        if self.postgres:
            self.postgres.kill()
            self.postgres.remove_outside()
        self.kafka.stop()

    def drive(self):
        """Sends and breaks for the run's time, then repairs everything."""
        load = Load(self.kafka.bootstrap, self.seed, self.args.rate)
        injector = Injector(self, random.Random(self.seed + 1), self.args.faults)
        end = time.time() + self.args.seconds
        while time.time() < end:
            load.step()
            injector.step(time.time())
            time.sleep(0.005)
        injector.repair()
        load.finish()
        return load.sent, injector

    def execute(self):
        """Returns (jobs, faults, violations, note)."""
        self.start()
        sent, injector = self.drive()
        repaired = time.time()
        logs = read_everything(self.kafka.bootstrap, ROOT / "schema", sent, injector.commit_samples,
                               self.args.recovery)
        recovered = time.time() - repaired
        if self.postgres:
            logs.job_rows, logs.latency_rows = recorded_rows(self.postgres.url, sent, logs, self.args.recovery)
        whole = [j for i, j in sent.jobs.items() if i not in sent.cancelled_early]
        reference = reference_texts(self.bin, whole)
        violations = checker.check(sent, logs, reference, self.postgres is not None)
        codes = [w.terminate() for w in self.workers if w.alive]
        violations += [checker.Violation("drain exits 0", "-", f"exit code {c}") for c in codes if c != 0]
        gaps = injector.recovery_gaps([at for _, _, at, _ in logs.results])
        violations += [checker.Violation("jobs of a killed worker run within 15 s", "-", f"{g:.1f} s") for g in gaps if g > 15]
        note = f"recovered in {recovered:.1f} s"
        if gaps:
            note += f", kill to next result p50 {sorted(gaps)[len(gaps) // 2]:.2f} s max {max(gaps):.2f} s"
        return len(sent.jobs), injector.count, violations, note


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("--seed", type=int, default=None, help="default: from the clock, printed")
    p.add_argument("--faults", default=",".join(FAULTS), help="of: " + ", ".join(FAULTS))
    p.add_argument("--minutes", type=float, default=None, help="start no further run after this long")
    p.add_argument("--seconds", type=float, default=25, help="of load and faults in a run")
    p.add_argument("--rate", type=float, default=25, help="requests a second")
    p.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    p.add_argument("--partitions", type=int, default=6)
    p.add_argument("--recovery", type=float, default=120, help="seconds to recover in")
    p.add_argument("--no-database", action="store_true")
    p.add_argument("--build", default=str(ROOT / "build"), help="directory of the programs under test")
    p.add_argument("--keep", action="store_true", help="keep the directory of clean runs too")
    args = p.parse_args(argv)
    args.faults = [f for f in args.faults.split(",") if f]
    unknown = set(args.faults) - set(FAULTS)
    if unknown:
        p.error(f"unknown faults {sorted(unknown)}; known: {', '.join(FAULTS)}")
    return args


def main():
    args = parse(sys.argv[1:])
    seed = args.seed if args.seed is not None else int(time.time())
    begun, totals, runs = time.time(), [0, 0, 0], 0
    for n in range(args.runs):
        if args.minutes and time.time() - begun > args.minutes * 60:
            break
        run = Run(args, seed + n)
        try:
            jobs, faults, violations, note = run.execute()
        finally:
            run.stop()
        runs += 1
        for i, value in enumerate((jobs, faults, len(violations))):
            totals[i] += value
        print(f"run {n + 1} seed {seed + n}: jobs {jobs}, faults {faults}, violations {len(violations)}, {note}", flush=True)
        for v in violations[:20]:
            print(f"  VIOLATION seed {seed + n}: {v}", flush=True)
        if violations or args.keep:
            print(f"  logs: {run.directory}")
        else:
            shutil.rmtree(run.directory, ignore_errors=True)
    print(f"runs {runs}, jobs {totals[0]}, faults {totals[1]}, violations {totals[2]}")
    sys.exit(1 if totals[2] or not runs else 0)


if __name__ == "__main__":
    main()
