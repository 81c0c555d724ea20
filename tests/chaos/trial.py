# SPDX-License-Identifier: MIT
"""One run: starts the parts, drives load and faults, waits for recovery, checks."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import checker
import hanging
import reader
from checker import Violation
from faults import Injector, TRANSACTION_MS
from load import Load, draw_uuid
from cluster import ROOT, Kafka, Postgres, Worker # load puts tests/lib on the path
from network import Network

MODEL = ROOT / "models/prometheus-mini"
# Records carry the broker's time of append: one clock, and the order in which things became true.
BROKER_SETTINGS = "log.message.timestamp.type=LogAppendTime\n"
MEMBERSHIP_FAULTS = {"kill", "join", "leave", "drain", "point"}
NOT_STARTED = "not started" # brokers or workers did not come up on this machine in time
ZOMBIE_S = 10 # how long a worker that was cut off may run jobs that are others' by now
RECOVER_LIMIT_S = 15 # from a kill to the next result of a partition that had work
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None) # Debian's package faketime
STEPPED_SHARE = 0.4 # of the runs with `clock`: there every worker runs under libfaketime


@dataclass
class Verdict:
    jobs: int
    faults: int
    violations: list
    note: str
    excused: list = field(default_factory=list) # violations of a run in which the brokers gave up markers of transactions
    figures: dict = field(default_factory=dict)


class ChaosWorker(Worker):
    """wanted: it should run now; when it does not, the injector's supervisor starts it again."""

    def __init__(self, name, directory, env, binary, poison_id):
        super().__init__(name, directory, env, binary)
        self.poison_id, self.wanted, self.fault = poison_id, False, ""
        self.log_read = 0 # bytes of the log that stalls_told() has seen
        self.log_begun = 0 # ... and that it had when this process began
        self.clock = self.directory / f"{name}.clock" # what libfaketime adds to the time of day

    def step_clock(self, seconds):
        ahead = self.clock.with_suffix(".next")
        ahead.write_text(f"{seconds:+d}\n")
        ahead.replace(self.clock)

    def stalls_told(self):
        """Seconds of each stall that the log tells of since the last call."""
        if ":stall:" not in self.fault or not self.log.exists() or self.log.stat().st_size == self.log_read:
            return []
        with open(self.log, "rb") as file:
            file.seek(self.log_read)
            lines = file.read().rpartition(b"\n")
        self.log_read += len(lines[0]) + len(lines[1])
        return [int(ms) / 1000 for ms in re.findall(rb"stalls at \w+ for (\d+) ms", lines[0])]

    @property
    def died_at_point(self):
        """This process killed itself, at a point or of the poison: its log says so."""
        if self.child.poll() != -signal.SIGKILL:
            return False
        with open(self.log, "rb") as file:
            file.seek(self.log_begun)
            return bool(re.search(rb'component="fault" message="dies at ', file.read()))

    @property
    def takes_signals(self):
        """Its main() has come to its signals (SIGPIPE is ignored): before that SIGTERM ends a process that has done
        nothing yet. What it blocks does not show while it waits for just that."""
        try:
            ignored = re.search(r"^SigIgn:\s*(\w+)", Path(f"/proc/{self.child.pid}/status").read_text(), re.M)
        except OSError:
            return False
        return bool(ignored and int(ignored.group(1), 16) >> (signal.SIGPIPE - 1) & 1)

    def under_faketime(self):
        self.step_clock(0)
        # the last: else its waits on conditions of the steady clock are over at once, and threads spin
        self.env.update(LD_PRELOAD=str(FAKETIME), FAKETIME_TIMESTAMP_FILE=str(self.clock), FAKETIME_CACHE_DURATION="1",
                        FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_FORCE_MONOTONIC_FIX="0")

    def start(self, fault=None):
        self.fault = fault or ""
        self.env["PGPT_FAULT"] = f"{self.poison_id}:kill" + (f",{fault}" if fault else "")
        self.log_begun = self.log.stat().st_size if self.log.exists() else 0
        super().start()
        self.wanted = True


def undisturbed(engine, device, jobs):
    """The results of an undisturbed run: the engine alone, one request after the other."""
    lines = "".join(json.dumps(j, ensure_ascii=False) + "\n" for j in jobs)
    done = subprocess.run([str(engine), "generate", "--model", str(MODEL), "--device", device, "--threads", "1"],
                          input=lines, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return {r["job_id"]: r for r in results}


class Trial:
    injector_class = Injector

    def __init__(self, args, seed):
        self.args, self.seed = args, seed
        self.rng = random.Random(seed)
        self.poison_id = draw_uuid(self.rng)
        self.directory = Path(tempfile.mkdtemp(prefix=f"pgpt-chaos-{seed}-"))
        os.chmod(self.directory, 0o755)
        self.bin = Path(args.build).resolve()
        self.kafka = self.postgres = self.load = self.injector = self.along = self.network = None
        self.workers, self.hung = [], []
        self.clocks_step = "clock" in args.faults and self.rng.random() < STEPPED_SHARE
        self.drain_limit = 40

    @property
    def counts(self):
        return self.injector.counts if self.injector else {}

    # ---- parts ----

    def worker_env(self):
        env = {"PGPT_BROKERS": self.kafka.fronts, "PGPT_MODEL": str(MODEL), "PGPT_ENGINE_DEVICE": self.args.device,
               "PGPT_ENGINE_THREADS": "1",
               "PGPT_ENGINE_MAX_ROWS": "64", "PGPT_HTTP_PORT": "0", "PGPT_WORKER_DRAIN_MS": "10000",
               "PGPT_TRANSACTION_TIMEOUT_MS": str(TRANSACTION_MS), "PGPT_KAFKA_CALL_TIMEOUT_MS": "5000"}
        if self.postgres:
            env["PGPT_DATABASE_URL"] = self.postgres.url
        else:
            env["PGPT_RECORDER_ENABLED"] = "false"
        return env

    def add_worker(self, **env):
        worker = ChaosWorker(f"w{len(self.workers) + 1}", self.directory, {**self.worker_env(), **env},
                             self.bin / "pgpt-worker", self.poison_id)
        if self.clocks_step:
            worker.under_faketime()
        worker.start()
        self.workers.append(worker)
        return worker

    def start(self):
        for program in ("pgpt-worker", "pgpt", "pgpt-engine"):
            if not (self.bin / program).exists():
                raise RuntimeError(f"{self.bin / program} is missing: cmake --preset faults && cmake --build --preset faults")
        if self.clocks_step and not FAKETIME:
            raise RuntimeError("libfaketime is missing: deploy/local/install --for tests")
        self.network = Network()
        self.kafka = Kafka(self.directory, self.args.brokers, self.args.session, BROKER_SETTINGS, self.network.front)
        self.kafka.start(180)
        self.create_topics()
        if not self.args.no_database:
            self.postgres = Postgres(self.directory)
            self.postgres.start()
            self.postgres.create()
        for _ in range(self.rng.randint(2, 3)):
            self.add_worker()

    def create_topics(self):
        """Brokers that have just started on a busy machine may not answer in time."""
        command = [str(self.bin / "pgpt"), "topics", "--create", "--partitions", str(self.args.partitions), "--replication",
                   "3" if self.args.brokers == 3 else "1"]
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  env={**os.environ, "PGPT_BROKERS": self.kafka.bootstrap})
            if done.returncode == 0:
                return
            time.sleep(3)
        raise RuntimeError(f"no topics: {done.stderr}")

    def stop(self):
        for worker in self.workers:
            worker.kill()
        if self.injector:
            self.injector.close()
        if self.postgres:
            self.postgres.kill()
            self.postgres.remove_outside()
        if self.along:
            self.along.close()
        if self.kafka:
            self.kafka.stop()
        if self.network:
            self.network.close()

    # ---- one run ----

    def wait_for_work(self):
        """The faults begin when the workers work: a first result is there."""
        probe = reader.Reader(self.kafka.bootstrap, ROOT / "schema")
        deadline = time.time() + 180
        while not probe.logs.results:
            if time.time() > deadline:
                raise RuntimeError(f"no result within 180 s of the start: {self.workers[0].tail()}")
            self.load.step()
            probe.poll()
        probe.close()

    def drive(self):
        """Sends and breaks for the run's time, then repairs everything."""
        self.load = Load(self.kafka.bootstrap, self.seed, self.args.rate, self.poison_id)
        self.wait_for_work()
        self.along = reader.Along(self.kafka.bootstrap)
        self.injector = self.injector_class(self, self.load, random.Random(self.seed + 1), self.args.faults, self.args.pace)
        end = time.time() + self.args.seconds
        while time.time() < end:
            self.load.step()
            self.injector.step(time.time())
            self.along.step(time.time())
            time.sleep(0.005)
        self.injector.repair()
        self.load.finish(self.tick)

    def tick(self):
        self.injector.go_on(time.time())

    def stacks(self):
        """Where every thread of every worker stands, for a recovery that does not come."""
        if not shutil.which("gdb"):
            return
        for worker in self.workers:
            if worker.alive:
                with open(self.directory / f"{worker.name}.stacks", "w", encoding="utf-8") as out:
                    subprocess.run(["timeout", "60", "gdb", "-p", str(worker.child.pid), "-batch", "-ex", "thread apply all bt 20"],
                                   stdout=out, stderr=subprocess.DEVNULL, check=False)

    def drain_all(self):
        """Every worker ends in order at the end; the injector hears of those that do not."""
        running = [w for w in self.workers if w.wanted and w.alive]
        deadline = time.time() + self.drain_limit
        while not all(w.takes_signals for w in running if w.alive) and time.time() < deadline:
            time.sleep(0.1)
        for worker in running:
            worker.wanted = False
        for worker in running:
            code = worker.terminate(self.drain_limit)
            if code != 0:
                self.injector.ended_badly(worker, code)

    def read_logs(self, sent):
        whole = reader.Reader(self.kafka.bootstrap, ROOT / "schema")
        logs = whole.read_all(sent, self.args.recovery, self.tick)
        if not whole.whole(sent):
            self.stacks()
            self.end_forgotten_transactions()
            logs = whole.read_all(sent, self.args.recovery / 2, self.tick) if self.hung else logs
        whole.close()
        return logs

    def end_forgotten_transactions(self):
        """What monitoring/FAULTS.md tells an operator to do. Reported, and no violation: the brokers lost them."""
        self.hung = hanging.find(self.kafka)
        for place in self.hung:
            self.injector.note(f"hanging transaction aborted: {' '.join(place)}")
            hanging.abort(self.kafka, place)

    def rebuilt_tables(self, final):
        """What a recorder makes of the whole log in an empty database."""
        url = self.postgres.copy("rebuilt")
        self.add_worker(PGPT_DATABASE_URL=url, PGPT_RECORDER_GROUP="rebuilding")
        return reader.tables_when(url, final, self.args.recovery)

    def figures(self, logs, repaired):
        times = sorted(r.at for r in logs.results)
        recovered = max(times, default=repaired) - repaired
        any_gaps, own_gaps = checker.recovery_gaps(logs, self.injector.kills)
        return {"recovered_s": round(max(recovered, 0), 2), "hanging": len(self.hung), "next_result_s": any_gaps, "next_of_partition_s": own_gaps}

    def execute(self):
        self.start()
        self.drive()
        repaired, sent = time.time(), self.load.sent
        logs = self.read_logs(sent)
        logs.along = self.along.rest(logs, self.directory / "along.stats.json")
        logs.clocks_stepped = "clock" in self.counts
        logs.committed = self.injector.commit_samples
        logs.zombies = [(since, until + ZOMBIE_S) for since, until in self.injector.cut_off]
        final = len({e.value["job_id"] for e in logs.final_events()})
        if self.postgres:
            logs.tables = reader.tables_when(self.postgres.url, final, self.args.recovery)
        self.drain_all()
        if self.postgres:
            logs.rebuilt = self.rebuilt_tables(final)
        reference = undisturbed(self.bin / "pgpt-engine", self.args.device, sent.healthy)
        violations = [Violation(rule, "-", what) for rule, what in self.injector.complaints]
        violations += checker.check(sent, logs, reference, self.postgres is not None)
        if sent.poison and self.injector.self_kills < 3:
            violations.append(Violation("poison", self.poison_id, f"dead-lettered after {self.injector.self_kills} deaths"))
        figures = self.figures(logs, repaired)
        if set(self.args.faults) <= MEMBERSHIP_FAULTS:
            violations += [Violation("a killed worker's jobs run within 15 s", "-", f"{g:.1f} s")
                           for g in figures["next_of_partition_s"] if g > RECOVER_LIMIT_S]
        lost = hanging.given_up(self.kafka)
        note = self.note(figures, sent) + (f", the brokers gave up {lost} transactions' markers" if lost else "")
        figures["markers_given_up"] = lost
        return Verdict(len(sent.jobs), self.injector.count, [] if lost else violations, note, violations if lost else [], figures)

    def note(self, figures, sent):
        gaps, own = sorted(figures["next_result_s"]), sorted(figures["next_of_partition_s"])
        text = f"recovered in {figures['recovered_s']:.1f} s, {sent.duplicates} duplicates"
        if gaps:
            text += f", kill to next result p50 {gaps[len(gaps) // 2]:.2f} s max {gaps[-1]:.2f} s"
        if own:
            text += f", in the partitions left p50 {own[len(own) // 2]:.2f} s max {own[-1]:.2f} s"
        if self.hung:
            text += f", hanging transactions of the brokers: {', '.join('-'.join(p[:2]) for p in self.hung)} (kept: {self.directory})"
        if self.injector.self_kills:
            text += f", {self.injector.self_kills} deaths at points"
        if self.injector.fatal_exits:
            text += f", exits after fatal errors: {'; '.join(self.injector.fatal_exits)}"
        return text

    def broken(self, trace):
        """The verdict when the harness itself failed. Before the first fault there was no run at all."""
        if not self.injector:
            return Verdict(0, 0, [Violation("the run began", "-", trace)], NOT_STARTED)
        jobs = len(self.load.sent.jobs) if self.load else 0
        return Verdict(jobs, self.injector.count if self.injector else 0,
                       [Violation("the harness ran to its end", "-", trace)], "not finished")
