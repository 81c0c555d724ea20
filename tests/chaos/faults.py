# SPDX-License-Identifier: MIT
"""The faults, drawn from the run's seed. Each breaks something, and returns what undoes it and after
how many seconds; the injector keeps at least one worker alive most of the time, so that the run makes
progress, and repairs everything at the end."""
import signal
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition


def kill_worker(injector):
    worker = injector.pick_worker()
    if not worker:
        return None
    worker.kill()
    injector.kills.append(time.time())
    return (injector.rng.uniform(0.2, 4), worker.start)


def pause_worker(injector):
    """SIGSTOP longer than the session: the group moves on, then a zombie wakes up."""
    worker = injector.pick_worker()
    if not worker:
        return None
    worker.signal(signal.SIGSTOP)
    return (injector.rng.choice([0.5, 3, 9]), lambda: worker.signal(signal.SIGCONT))


def drain_worker(injector):
    """A rolling restart's share: SIGTERM, exit 0 expected, start again."""
    worker = injector.pick_worker()
    if not worker:
        return None
    worker.signal(signal.SIGTERM)

    def restart():
        code = worker.terminate(30)
        if code != 0:
            injector.complaints.append(f"{worker.name} exited {code} on SIGTERM")
        worker.start()
    return (injector.rng.uniform(2, 5), restart)


def join_worker(injector):
    if len(injector.run.workers) >= 5:
        return None
    injector.run.add_worker()
    return (0, None)


def kill_broker(injector):
    brokers = injector.run.kafka.brokers
    broker = injector.rng.choice(brokers)
    if not all(b.alive for b in brokers):
        return None
    broker.kill()
    return (injector.rng.uniform(0.5, 4), broker.start)


def restart_broker(injector):
    brokers = injector.run.kafka.brokers
    broker = injector.rng.choice(brokers)
    if not all(b.alive for b in brokers):
        return None
    broker.terminate(30)
    return (injector.rng.uniform(0.2, 1), broker.start)


def pause_broker(injector):
    """A broker that hangs: connections stay open and nothing answers."""
    brokers = injector.run.kafka.brokers
    broker = injector.rng.choice(brokers)
    if not all(b.alive and not b.stopped for b in brokers):
        return None
    broker.signal(signal.SIGSTOP)
    return (injector.rng.choice([1, 4, 9]), lambda: broker.signal(signal.SIGCONT))


def kill_postgres(injector):
    postgres = injector.run.postgres
    if not postgres or not postgres.alive:
        return None
    postgres.kill()
    return (injector.rng.uniform(0.5, 8), postgres.start)


FAULTS = {"kill": kill_worker, "pause": pause_worker, "drain": drain_worker, "join": join_worker,
          "broker_kill": kill_broker, "broker_restart": restart_broker, "broker_pause": pause_broker,
          "postgres_kill": kill_postgres}


class Injector:
    def __init__(self, run, rng, names):
        self.run, self.rng, self.names = run, rng, names
        self.count, self.kills, self.complaints = 0, [], []
        self.pending = [] # (due, undo)
        self.next_fault = time.time() + rng.uniform(2, 4) # let the group form first
        self.commit_samples, self.next_sample = [], 0
        self.sampler = Consumer({"bootstrap.servers": run.kafka.bootstrap, "group.id": "pgpt-workers",
                                 "enable.auto.commit": False, "log_level": 0})

    def pick_worker(self):
        up = [w for w in self.run.workers if w.alive and not w.stopped]
        return self.rng.choice(up) if len(up) > 1 else None

    def sample_commits(self, now):
        """What any operator sees: the group's committed offsets, by an ordinary client."""
        self.next_sample = now + 1
        parts = [TopicPartition("pgpt.requests", p) for p in range(self.run.args.partitions)]
        try:
            for tp in self.sampler.committed(parts, timeout=0.5):
                if tp.offset >= 0:
                    self.commit_samples.append((time.time(), tp.partition, tp.offset))
        except KafkaException:
            pass # a broker is down: no sample

    def step(self, now):
        for item in [p for p in self.pending if p[0] <= now]:
            self.pending.remove(item)
            item[1]()
        if now >= self.next_fault:
            undo = FAULTS[self.rng.choice(self.names)](self)
            if undo:
                self.count += 1
                if undo[1]:
                    self.pending.append((now + undo[0], undo[1]))
            self.next_fault = now + self.rng.uniform(0.3, 3)
        if now >= self.next_sample:
            self.sample_commits(now)

    def repair(self):
        for _, undo in sorted(self.pending, key=lambda p: p[0]):
            undo()
        self.pending = []
        for broker in self.run.kafka.brokers:
            broker.signal(signal.SIGCONT)
            if not broker.alive:
                broker.start()
        self.run.kafka.wait()
        if self.run.postgres and not self.run.postgres.alive:
            self.run.postgres.start()
        for worker in self.run.workers:
            worker.signal(signal.SIGCONT)
            if not worker.alive:
                worker.start()
        if self.complaints:
            raise RuntimeError("; ".join(self.complaints))

    def recovery_gaps(self, result_times):
        """Seconds from each kill -9 to the next committed result."""
        times = sorted(result_times)
        return [next((t for t in times if t > k), k) - k for k in self.kills if times and times[-1] > k]
