# SPDX-License-Identifier: MIT
"""Bounds under load: real brokers, the worker on the engine's test double, thousands of jobs a second. Each scenario
sends, waits until everything has its outcome exactly once and the lag is 0, and holds the worker's resident memory,
threads and file handles against what is declared.

  tests/chaos/bounds                       all scenarios, 1/10 of the size
  tests/chaos/bounds million --scale 1     1,000,000 requests queued before the worker starts
  tests/chaos/bounds overload slow_job     only these

Needs: cmake --build --preset release --target pgpt-worker-fake pgpt. One line a scenario; exit code 1 when a bound
is broken or something is lost or doubled."""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

import load # noqa: F401  (puts tests/lib on the path)
import wire
from cluster import ROOT, Kafka, Worker, free_port

MODEL = ROOT / "models/prometheus-mini"
PLACEHOLDER = "00000000-0000-4000-8000-000000000000"
TOPIC_LIMIT = 1 << 20 # max.message.bytes of the topics as `pgpt topics --create` makes them
BATCH_OVERHEAD = 200


class Broken(Exception):
    """A bound or a guarantee does not hold."""


class Sampler(threading.Thread):
    """Resident memory, threads and file handles of a process, five times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak = pid, {"rss": 0, "threads": 0, "handles": 0}
        self.over = threading.Event()
        self.start()

    @staticmethod
    def look(pid):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {"rss": int(fields["VmRSS"].split()[0]) / 1024, "threads": int(fields["Threads"]),
                "handles": len(os.listdir(f"/proc/{pid}/fd"))}

    def now(self):
        return self.look(self.pid)

    def run(self):
        while not self.over.wait(0.2):
            try:
                self.peak = {name: max(value, self.peak[name]) for name, value in self.now().items()}
            except (OSError, KeyError):
                return # it has ended


def template(**fields):
    """An encoded request and the place of its job_id, so that a million are made by copying."""
    record = {"job_id": PLACEHOLDER, "prompt": "Where is the nearest station?", "target_language": "ru", "max_length": 4,
              "created_at_us": int(time.time() * 1e6), **fields}
    payload = wire.encode(wire.GENERATION_REQUEST, record)
    return payload, payload.index(PLACEHOLDER.encode())


class Stage:
    """A broker, its topics and at most one worker at a time."""

    def __init__(self, args, partitions=6):
        self.directory = Path(tempfile.mkdtemp(prefix="pgpt-bounds-"))
        self.bin, self.partitions, self.ids = args.build, partitions, random.Random(1)
        self.kafka = Kafka(self.directory, 1, 6000, "log.retention.check.interval.ms=3600000\n")
        self.kafka.start(180)
        self.tool("topics", "--create", "--partitions", str(partitions), "--replication", "1")
        self.producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "partitioner": "murmur2_random", "log_level": 0,
                                  "topic.metadata.refresh.interval.ms": 5000, "linger.ms": 20, "message.max.bytes": TOPIC_LIMIT + 65536, "queue.buffering.max.messages": 2000000,
                                  "queue.buffering.max.kbytes": 1 << 20})
        self.worker, self.sampler, self.refused = None, None, []

    def tool(self, *words):
        subprocess.run([str(self.bin / "pgpt"), *words], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "PGPT_BROKERS": self.kafka.bootstrap})

    def start_worker(self, engine, **settings):
        env = {"PGPT_BROKERS": self.kafka.bootstrap, "PGPT_MODEL": str(MODEL), "PGPT_HTTP_PORT": str(free_port()),
               "PGPT_RECORDER_ENABLED": "false", "PGPT_LOG_LEVEL": "warn", "PGPT_FAKE_ENGINE": engine,
               **{f"PGPT_{name.upper()}": str(value) for name, value in settings.items()}}
        self.worker = Worker("bounds", self.directory, env, self.bin / "pgpt-worker-fake")
        self.worker.start()
        self.sampler = Sampler(self.worker.child.pid)
        return self.worker

    def delivered(self, problem, _message):
        if problem:
            self.refused.append(str(problem))

    def send(self, count, partition=-1, **fields):
        """Copies of one request under drawn job_ids; returns the keys."""
        payload, at = template(**fields)
        keys = []
        for _ in range(count):
            key = str(uuid.UUID(int=self.ids.getrandbits(128), version=4)).encode()
            keys.append(key)
            value = payload[:at] + key + payload[at + 36:]
            while True:
                try:
                    if partition < 0:
                        self.producer.produce("pgpt.requests", value, key, on_delivery=self.delivered)
                    else:
                        self.producer.produce("pgpt.requests", value, key, partition, on_delivery=self.delivered)
                    break
                except BufferError:
                    self.producer.poll(0.1)
            self.producer.poll(0)
        return keys

    def flush(self):
        left = self.producer.flush(300)
        if left or self.refused:
            raise Broken(f"{left} requests not sent, {self.refused[:2]}")

    def read(self, topic, wanted, timeout, follow=True):
        """Keys of a topic, read_committed, until `wanted` are there and no more come for 2 s."""
        c = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "bounds", "enable.auto.commit": False,
                      "isolation.level": "read_committed", "auto.offset.reset": "earliest", "log_level": 0})
        c.assign([TopicPartition(topic, p, 0) for p in c.list_topics(topic, timeout=30).topics[topic].partitions])
        keys, quiet, deadline = [], time.time(), time.time() + timeout
        while time.time() < deadline and not (len(keys) >= wanted and time.time() - quiet > 2):
            for message in c.consume(10000, 0.3):
                if not message.error():
                    keys.append(message.key())
                    quiet = time.time()
            if follow and not self.worker.alive:
                raise Broken(f"the worker ended: {self.worker.tail(3)}")
        c.close()
        return keys

    def all_once(self, topic, keys, timeout):
        found = self.read(topic, len(keys), timeout)
        missing, doubled = len(set(keys) - set(found)), len(found) - len(set(found))
        if missing or doubled or set(found) - set(keys):
            raise Broken(f"{topic}: {missing} of {len(keys)} missing, {doubled} twice, {len(set(found) - set(keys))} unknown")

    def metric(self, series):
        return self.worker.metric(series) or 0

    def lag_zero(self, timeout=60):
        c = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "pgpt-workers", "enable.auto.commit": False})
        parts = [TopicPartition("pgpt.requests", p) for p in c.list_topics("pgpt.requests", timeout=30).topics["pgpt.requests"].partitions]
        deadline = time.time() + timeout
        while True:
            behind = [tp.partition for tp in c.committed(parts, timeout=30)
                      if max(tp.offset, 0) != c.get_watermark_offsets(tp, timeout=30)[1]]
            if not behind:
                break
            if time.time() > deadline:
                raise Broken(f"the lag stays in partitions {behind[:5]}")
            time.sleep(0.3)
        c.close()

    def end(self):
        code = self.worker.terminate(60)
        if code != 0:
            raise Broken(f"the worker exited {code} after SIGTERM: {self.worker.tail(3)}")

    def close(self):
        if self.worker:
            self.worker.kill()
        self.kafka.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


# ---- scenarios: each returns (jobs, what else there is to say) ----

def million(stage, scale):
    """All requests are there before the worker starts."""
    keys = stage.send(int(1000000 * scale))
    stage.flush()
    since = time.time()
    stage.start_worker("rows=512,step_us=500,length=3").wait_ready(120)
    stage.all_once("pgpt.results", keys, 3600)
    took = time.time() - since
    return len(keys), f"{len(keys) / took:.0f} jobs/s"


def overload(stage, scale):
    """Ten times what the worker can do, for a while (two minutes at scale 1): a full worker pauses and goes on."""
    capacity = 200 # a row takes 2 x 2.5 steps of 20 ms: 16 rows do about 160 jobs a second
    stage.start_worker("rows=16,step_us=20000,length=3").wait_ready(120)
    seconds, keys, paused = max(10, int(120 * scale)), [], 0
    since = time.time()
    while time.time() - since < seconds:
        due = int((time.time() - since) * capacity * 10)
        keys += stage.send(due - len(keys))
        paused = max(paused, stage.metric("pgpt_partitions_paused"))
        time.sleep(0.05)
    stage.flush()
    if not paused:
        raise Broken("the worker was never full: this is no overload")
    stage.all_once("pgpt.results", keys, 3600)
    return len(keys), f"{seconds} s of 10 x, {(time.time() - since):.0f} s until the last result"


def big_messages(stage, scale):
    """Requests of the topic's limit, prompts of 64 KB, dead letters of the limit, among small ones."""
    big = TOPIC_LIMIT - BATCH_OVERHEAD - len(template()[0])
    count = max(100, int(2000 * scale))
    keys = stage.send(count, prompt="x" * big) + stage.send(count, prompt="A word and another. " * 3276)
    keys += stage.send(8 * count)
    junk = [f"junk-{n}".encode() for n in range(count)]
    for n, key in enumerate(junk):
        stage.producer.produce("pgpt.requests", bytes([n % 251 + 1]) * (TOPIC_LIMIT - BATCH_OVERHEAD), key, on_delivery=stage.delivered)
        stage.producer.poll(0)
        if n % 50 == 0:
            stage.producer.flush(60)
    stage.flush()
    # many of the first records are junk on purpose: here their share stops nothing
    stage.start_worker("rows=64,step_us=500,length=3", dlq_limit_ratio=1.0).wait_ready(120)
    stage.all_once("pgpt.results", keys, 1800)
    stage.all_once("pgpt.dlq", junk, 600)
    return len(keys) + len(junk), f"{count} requests of 1 MiB, {count} prompts of 64 KB, {count} dead letters of 1 MiB"


def slow_job(stage, scale):
    """One job runs while 16,384 offsets above it finish: its partition pauses, the others go on."""
    del scale # the ledger's limit is what it is
    first = stage.send(1, partition=0, max_length=250, min_length=249)
    stage.flush()
    behind = stage.send(20000, partition=0, max_length=1) # 3,616 past the limit
    others = stage.send(5000, partition=1, max_length=1)
    stage.flush()
    stage.start_worker("rows=1024,step_us=50000,length=2,slow=4").wait_ready(120)
    ahead, results, deadline = 0, Counter(stage), time.time() + 240
    while ahead < 16383 and time.time() < deadline:
        ahead = max(ahead, stage.metric("pgpt_ledger_ahead_offsets"))
        time.sleep(0.05)
    if ahead < 16383:
        raise Broken(f"the partition ran only {ahead:.0f} offsets ahead")
    time.sleep(1)
    late = stage.send(200, partition=1, max_length=1)
    stage.flush()
    results.until(set(late), 30)
    if first[0] in results.seen:
        raise Broken("the slow job was too fast: nothing was shown")
    if stage.metric("pgpt_ledger_ahead_offsets") > 16384:
        raise Broken("past the ledger's limit")
    results.close()
    stage.all_once("pgpt.results", first + behind + others + late, 600)
    return 1 + len(behind) + len(others) + len(late), f"{ahead:.0f} offsets ahead, another partition went on meanwhile"


class Counter:
    """Keys of pgpt.results as they come."""

    def __init__(self, stage):
        self.seen = set()
        self.consumer = Consumer({"bootstrap.servers": stage.kafka.bootstrap, "group.id": "bounds-along", "enable.auto.commit": False,
                                  "isolation.level": "read_committed", "auto.offset.reset": "earliest", "log_level": 0})
        self.consumer.assign([TopicPartition("pgpt.results", p, 0) for p in range(stage.partitions)])

    def until(self, wanted, timeout):
        deadline = time.time() + timeout
        while not wanted <= self.seen:
            if time.time() > deadline:
                raise Broken(f"{len(wanted - self.seen)} results of another partition did not come")
            self.seen.update(m.key() for m in self.consumer.consume(5000, 0.2) if not m.error())

    def close(self):
        self.consumer.close()


def partitions(stage, scale):
    """Hundreds of partitions, and more of them while it runs."""
    jobs = max(3000, int(30000 * scale))
    stage.start_worker("rows=256,step_us=500,length=3").wait_ready(300)
    keys = stage.send(jobs)
    stage.flush()
    stage.tool("topics", "--create", "--partitions", str(stage.partitions + 50), "--replication", "1")
    deadline = time.time() + 400 # the client looks for new partitions every five minutes
    while stage.metric("pgpt_partitions_assigned") < stage.partitions + 50 and time.time() < deadline:
        keys += stage.send(20)
        time.sleep(0.5)
    taken = stage.metric("pgpt_partitions_assigned")
    if taken < stage.partitions + 50:
        raise Broken(f"{taken:.0f} partitions are assigned, not {stage.partitions + 50}")
    stage.worker.wait_ready(60)
    keys += [key for p in range(stage.partitions, stage.partitions + 50) for key in stage.send(10, partition=p)]
    stage.flush()
    stage.all_once("pgpt.results", keys, 600)
    return len(keys), f"{stage.partitions} partitions, then {taken:.0f}"


# Megabytes over an idle worker. Declared: 16 MiB of prefetched requests; queue.max_jobs jobs with their texts
# (small ones take 6 to 10 KiB, big ones their payload and what is decoded of it); a transaction's records; up to
# 1,000,000 remembered job_ids a partition, 100,000 at least, about 40 bytes each.
SCENARIOS = {"million": (million, 6, 300), "overload": (overload, 6, 300), "big_messages": (big_messages, 6, 600),
             "slow_job": (slow_job, 2, 300), "partitions": (partitions, 300, 300)}


def run(name, args):
    scenario, count, limit = SCENARIOS[name]
    stage = Stage(args, count)
    try:
        since = time.time()
        jobs, more = scenario(stage, args.scale)
        stage.lag_zero()
        idle, peak = stage.sampler.now(), stage.sampler.peak
        base = args.idle_mb or stage_idle(stage, args)
        print(f"{name}: {jobs} jobs in {time.time() - since:.0f} s ({more}); memory idle {base:.0f} MB, most {peak['rss']:.0f} MB, "
              f"after {idle['rss']:.0f} MB, declared {base + limit:.0f} MB; threads {peak['threads']}, handles {peak['handles']}",
              flush=True)
        if peak["rss"] > base + limit:
            raise Broken(f"memory: {peak['rss']:.0f} MB, declared {base + limit:.0f} MB")
        return True
    except Exception as problem: # a scenario that fails itself is no proof either
        what = str(problem) if isinstance(problem, Broken) else traceback.format_exc()
        print(f"{name}: BROKEN: {what}", flush=True)
        return False
    finally:
        stage.close()


def stage_idle(stage, args):
    """What the same worker needs when it has nothing to do: started again, ready, at rest."""
    del args
    stage.end()
    stage.worker.start()
    stage.worker.wait_ready(300)
    time.sleep(1)
    return Sampler(stage.worker.child.pid).now()["rss"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scenarios", nargs="*", help="of: " + ", ".join(SCENARIOS))
    p.add_argument("--scale", type=float, default=0.1)
    p.add_argument("--build", type=lambda text: Path(text).resolve(), default=ROOT / "build")
    p.add_argument("--idle-mb", type=float, default=0, help="of an idle worker; default: measured after the scenario")
    args = p.parse_args()
    unknown = set(args.scenarios) - set(SCENARIOS)
    if unknown:
        p.error(f"no such scenario: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler) # the scenarios' ends stop what they started
    names = args.scenarios or list(SCENARIOS)
    good = sum(run(name, args) for name in names)
    print(f"bounds: {good} of {len(names)} hold")
    sys.exit(0 if good == len(names) else 1)


if __name__ == "__main__":
    main()
