# SPDX-License-Identifier: MIT
"""The faults, drawn from the run's seed. Each breaks something, and returns what goes on with it: None
when it could not be injected now, else (seconds, next step), the next step being None or a function
that may return such a pair again. The injector keeps at least one worker alive most of the time, so
that the run makes progress, starts again what died by itself, as a supervisor in production does, and
repairs everything at the end."""
import datetime
import signal
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from network import ANSWERS, REQUESTS, Trouble

NOTHING_MORE = (0, None)
BROKER_START_S = 12
WORKERS_MAX = 4
TRANSACTION_MS = 6000 # the workers' transaction.timeout_ms
STALL_SEEN_S = 1 # how late a worker's line about a stall may be seen

# Where a worker kills itself (worker/fault.h), and up to which pass of the point.
POINTS = {"open_mark": 1, "open_marked": 1, "decode": 30, "first_chunk": 15, "last_chunk": 15, "alone_marked": 1,
          "produce_result": 30, "send_offsets": 15, "commit": 15, "committed": 15, "revoke": 2,
          "sql_offsets": 4, "sql_commit": 4, "sql_committed": 4}
STALLS = {"send_offsets": 8, "commit": 15, "revoke": 2, "open_marked": 1, "last_chunk": 15, "sql_commit": 4}


# ---- workers ----

def kill_worker(injector):
    worker = injector.pick_worker()
    if not worker:
        return None
    injector.kill(worker)
    return (injector.rng.uniform(0.2, 4), worker.start)


def pause_worker(injector):
    """SIGSTOP longer than the session: the group moves on, then a zombie wakes up."""
    worker = injector.pick_worker()
    if not worker:
        return None
    worker.signal(signal.SIGSTOP)
    since = time.time()

    def resume():
        worker.signal(signal.SIGCONT)
        injector.cut_off.append((since, time.time()))
    return (injector.rng.choice([0.5, 3, injector.run.args.session / 1000 + 3]), resume)


def end_worker(injector, worker, restart):
    """SIGTERM, exit 0 expected, start again or not."""
    if not worker.takes_signals:
        return None
    worker.wanted = False
    worker.signal(signal.SIGTERM)
    since = time.time()

    def look():
        if worker.alive:
            if time.time() - since < injector.run.drain_limit:
                return (0.2, look)
            worker.kill()
            injector.complain("drain ends", f"{worker.name} ran {time.time() - since:.0f} s after SIGTERM")
        elif worker.child.returncode != 0:
            injector.ended_badly(worker, worker.child.returncode)
        if restart:
            worker.start()
        return None
    return (1, look)


def drain_worker(injector):
    worker = injector.pick_worker()
    return end_worker(injector, worker, True) if worker else None


def leave_worker(injector):
    worker = injector.pick_worker() if len([w for w in injector.run.workers if w.wanted]) > 2 else None
    return end_worker(injector, worker, False) if worker else None


def join_worker(injector, most=WORKERS_MAX):
    if len([w for w in injector.run.workers if w.wanted]) >= most:
        return None
    injector.run.add_worker()
    return NOTHING_MORE


def restart_with(injector, fault):
    worker = injector.pick_worker()
    if not worker:
        return None
    injector.note(f"{worker.name} will start with {fault}")
    injector.kill(worker)
    return (0.2, lambda: worker.start(fault))


def kill_at_point(injector):
    point = injector.rng.choice(injector.run.args.points)
    return restart_with(injector, f"{point}:kill@{injector.rng.randint(1, POINTS[point])}")


def stall_at_point(injector):
    stalls = [p for p in injector.run.args.points if p in STALLS]
    if not stalls:
        return None
    point = injector.rng.choice(stalls)
    # the longer one: enough for a rebalance, too short for the coordinator to end the transaction
    stall = injector.rng.choice([1500, TRANSACTION_MS - 500, TRANSACTION_MS - 500, injector.run.args.session + 3000])
    return restart_with(injector, f"{point}:stall:{stall}@{injector.rng.randint(1, STALLS[point])}")


def send_poison(injector):
    return NOTHING_MORE if injector.load.send_poison() else None


# ---- brokers ----

def all_well(injector):
    """All serve: a broker that is killed while it starts, again and again, is an outage and tests nothing else."""
    brokers = injector.run.kafka.brokers
    if not all(b.alive and not b.stopped for b in brokers):
        return False
    try:
        return len(injector.sampler.list_topics(timeout=0.5).brokers) == len(brokers)
    except KafkaException:
        return False


def break_broker(injector, broker, how, least, most):
    if not all_well(injector):
        return None
    since = time.time()
    how(broker)

    def again():
        broker.start()
        injector.cut_off.append((since, time.time() + BROKER_START_S))
    return (injector.rng.uniform(least, most), again)


def kill_broker(injector):
    return break_broker(injector, injector.rng.choice(injector.run.kafka.brokers), lambda b: b.kill(), 0.5, 4)


def restart_broker(injector):
    return break_broker(injector, injector.rng.choice(injector.run.kafka.brokers), lambda b: b.terminate(30), 0.2, 1)


def pause_broker(injector):
    """A broker that hangs: connections stay open and nothing answers, as behind a cut network."""
    broker = injector.rng.choice(injector.run.kafka.brokers)
    if not all_well(injector):
        return None
    broker.signal(signal.SIGSTOP)
    since = time.time()

    def resume():
        broker.signal(signal.SIGCONT)
        injector.cut_off.append((since, time.time()))
    return (injector.rng.choice([1, 4, 9]), resume)


def java_hash(text):
    """String.hashCode without its sign bit: which partition of the offsets topic has a group."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


def kill_leader(injector, topic, key):
    """The broker that leads the partition of a key in one of the brokers' own topics. Asked of the topic: the
    admin client's calls to a coordinator that is away may abort the process."""
    try:
        found = injector.sampler.list_topics(topic, timeout=2).topics[topic]
        node = found.partitions[java_hash(key) % len(found.partitions)].leader
    except (KafkaException, KeyError, ZeroDivisionError):
        return None
    broker = next((b for b in injector.run.kafka.brokers if b.node == node), None)
    return break_broker(injector, broker, lambda b: b.kill(), 1, 5) if broker else None


def kill_coordinator(injector):
    return kill_leader(injector, "__consumer_offsets", "pgpt-workers")


def kill_transaction_coordinator(injector):
    worker = injector.pick_worker()
    return kill_leader(injector, "__transaction_state", f"pgpt-workers-{worker.name}") if worker else None


def roll_brokers(injector):
    """Each broker in turn is told to end and started again once the others carry on."""
    if not all_well(injector):
        return None
    left = list(injector.run.kafka.brokers)
    injector.cut_off.append((time.time(), time.time() + len(left) * BROKER_START_S))

    def down():
        left[0].terminate(30)
        return (0.5, up)

    def up():
        left.pop(0).start()
        return (6, down) if left else None
    return (0, down)


# ---- network ----

def trouble_with(injector, seconds, reset=False, **what):
    worker = injector.pick_worker()
    if not worker:
        return None
    network, since = injector.run.network, time.time()
    trouble = Trouble(f"{worker.name}-", **what)
    injector.note(f"{trouble} for {seconds} s, then {'reset' if reset else 'released'}")
    network.begin(trouble)

    def lift():
        network.lift(trouble, reset)
        injector.cut_off.append((since, time.time()))
    return (seconds, lift)


# All clients of a worker, or only the one that commits, the one that chunks go through, the one that reads
# cancels: results must neither get lost with the first nor overtake the second or the third.
ROLES = ("", "settle", "stream", "control")


def cut_worker(injector):
    """A worker from all brokers, or one of its clients alone; both ways, or only what is asked or answered:
    a commit whose answer never comes."""
    rng = injector.rng
    return trouble_with(injector, rng.choice([1, 4, injector.run.args.session / 1000 + 3]), rng.random() < 0.5,
                        role=rng.choice(ROLES), held=rng.choice([(REQUESTS, ANSWERS), (REQUESTS,), (ANSWERS,)]))


# Requests of a transaction whose answer says what became of it (the protocol's API keys).
TXN_OFFSET_COMMIT, END_TXN = 28, 26


def unanswered(injector):
    """A worker's next request to commit reaches the brokers, and no answer comes before the call's limit."""
    rng = injector.rng
    return trouble_with(injector, injector.run.args.session / 1000 + 3, rng.random() < 0.5, role="settle",
                        held=(ANSWERS,), behind=rng.choice([END_TXN, END_TXN, TXN_OFFSET_COMMIT]))


def delay_worker(injector):
    rng = injector.rng
    return trouble_with(injector, rng.uniform(2, 6), role=rng.choice(ROLES), delay_s=rng.choice([0.05, 0.2, 0.6]))


def reset_worker(injector):
    worker = injector.pick_worker()
    if not worker:
        return None
    injector.run.network.reset(Trouble(f"{worker.name}-"))
    return NOTHING_MORE


def slow_reader(injector):
    injector.run.along.stand_still(time.time() + injector.rng.uniform(2, 8))
    return NOTHING_MORE


# ---- clocks ----

def step_clock(injector):
    """The time of day of one worker jumps, the steady clock does not."""
    worker = injector.pick_worker() if injector.run.clocks_step else None
    if not worker:
        return None
    step = injector.rng.choice([-86400, -3600, -5, 5, 3600, 86400])
    injector.note(f"the clock of {worker.name} is off by {step} s")
    worker.step_clock(step)
    return (injector.rng.uniform(2, 8), lambda: worker.step_clock(0))


# ---- PostgreSQL ----

def kill_postgres(injector, least=0.5, most=4):
    postgres = injector.run.postgres
    if not postgres or not postgres.alive:
        return None
    postgres.kill()
    return (injector.rng.uniform(least, most), postgres.start)


def outage_postgres(injector):
    """Until the load is over and everything is repaired."""
    return kill_postgres(injector, 1000, 1000)


FAULTS = {"kill": kill_worker, "pause": pause_worker, "drain": drain_worker, "join": join_worker,
          "leave": leave_worker, "point": kill_at_point, "stall": stall_at_point, "poison": send_poison,
          "broker_kill": kill_broker, "broker_restart": restart_broker, "broker_pause": pause_broker,
          "coordinator": kill_coordinator, "transactions": kill_transaction_coordinator, "rolling": roll_brokers,
          "cut": cut_worker, "unanswered": unanswered, "delay": delay_worker, "reset": reset_worker,
          "slow_reader": slow_reader, "clock": step_clock,
          "postgres_kill": kill_postgres, "postgres_outage": outage_postgres}
BROKER_FAULTS = ("broker_kill", "broker_restart", "broker_pause", "coordinator", "transactions", "rolling", "cut",
                 "unanswered", "delay", "reset")


class Injector:
    def __init__(self, run, load, rng, names, pace):
        self.run, self.load, self.rng, self.names, self.pace = run, load, rng, names, pace
        self.counts, self.fault = {}, None # of each kind; the one that is injected now
        self.kills = [] # times
        self.cut_off = [] # (from, to): workers stood still or without their broker
        self.complaints = [] # (rule, what)
        self.self_kills, self.fatal_exits = 0, [] # the latter: what was said last
        self.pending = [] # [due, step]
        self.next_fault = time.time() + rng.uniform(1, 2)
        self.commit_samples, self.next_sample = [], 0
        self.sampler = Consumer({"bootstrap.servers": run.kafka.bootstrap, "group.id": "pgpt-workers",
                                 "enable.auto.commit": False, "log_level": 0})

    @property
    def count(self):
        return sum(self.counts.values())

    def complain(self, rule, what):
        self.complaints.append((rule, what))

    def note(self, what):
        """A line of the run's faults.log, with the clock of the workers' logs."""
        with open(self.run.directory / "faults.log", "a", encoding="utf-8") as out:
            out.write(f"{datetime.datetime.now(datetime.timezone.utc):%H:%M:%S.%f} {what}\n")

    def ended_badly(self, worker, code):
        """After SIGTERM. A client that hangs over a broker that went away may cost the 0, but nothing else."""
        if worker.died_at_point: # which it came to only now
            self.self_kills += 1
        elif code == 1 and any(name in self.counts for name in BROKER_FAULTS):
            self.fatal_exits.append(f"{worker.name} exited 1 after SIGTERM: {worker.tail(1)[-200:]}")
        else:
            self.complain("drain exits 0", f"{worker.name} exited {code}: {worker.tail(3)}")

    def pick_worker(self):
        up = [w for w in self.run.workers if w.wanted and w.alive and not w.stopped]
        return self.rng.choice(up) if len(up) > 1 else None

    def kill(self, worker):
        worker.wanted = False
        self.kills.append(time.time())
        self.note(f"{worker.name} is killed")
        worker.kill()

    def sample_commits(self, now):
        """What any operator sees: the group's committed offsets, by an ordinary client."""
        self.next_sample = now + 1
        parts = [TopicPartition("pgpt.requests", p) for p in range(self.run.args.partitions)]
        try:
            for tp in self.sampler.committed(parts, timeout=0.3):
                if tp.offset >= 0:
                    self.commit_samples.append((time.time(), tp.partition, tp.offset))
        except KafkaException:
            pass # a broker is down: no sample

    def watch_stalls(self, now):
        """A thread that stood still goes on with what it held, whoever has it by now: the worker's log says when.
        Its clock may have been stepped, so what counts is when the line was seen."""
        for worker in self.run.workers:
            for stalled_s in worker.stalls_told():
                self.cut_off.append((now - STALL_SEEN_S, now + stalled_s))
                if "join" in self.names: # partitions move while it stands
                    self.pending.append([now, lambda: join_worker(self, WORKERS_MAX + 1)])

    def supervise(self, now):
        """Workers that ended without being told to are started again a second later."""
        for worker in self.run.workers:
            if not worker.wanted or worker.alive:
                continue
            code = worker.child.returncode
            worker.wanted = False
            self.note(f"{worker.name} ended: {code}")
            self.pending.append([now + 1, worker.start])
            if worker.died_at_point:
                self.self_kills += 1
            elif code < 0:
                self.complain("no crash", f"{worker.name} died of {signal.Signals(-code).name}: {worker.tail(3)}")
            else:
                self.fatal_exits.append(f"{worker.name} exited {code}: {worker.tail(1)[-200:]}")
                self.note(self.fatal_exits[-1])

    def go_on(self, now):
        """What is due of the faults under way, and the supervisor's work."""
        for item in [p for p in self.pending if p[0] <= now]:
            self.pending.remove(item)
            more = item[1]()
            if more and more[1]:
                self.pending.append([time.time() + more[0], more[1]])
        self.watch_stalls(now)
        self.supervise(now)

    def step(self, now):
        self.go_on(now)
        if now >= self.next_fault:
            self.fault = name = self.rng.choice(self.names)
            more = FAULTS[name](self)
            if more:
                self.note(name)
                self.counts[name] = self.counts.get(name, 0) + 1
                if more[1]:
                    self.pending.append([now + more[0], more[1]])
            self.next_fault = now + self.rng.uniform(0.2, 1.8) * self.pace
        if now >= self.next_sample:
            self.sample_commits(now)

    def repair(self):
        """Everything under way comes to its end now; nothing stays broken. Poison goes on killing."""
        self.note("repair begins")
        for broker in self.run.kafka.brokers:
            broker.signal(signal.SIGCONT)
        deadline = time.time() + 90
        while self.pending and time.time() < deadline:
            for item in self.pending: # waits for an end that is under way stay waits
                item[0] = min(item[0], time.time() + 0.2)
            self.go_on(time.time())
            time.sleep(0.1)
        for broker in self.run.kafka.brokers:
            if not broker.alive:
                broker.start()
        self.run.kafka.wait(240)
        if self.run.postgres and not self.run.postgres.alive:
            self.run.postgres.start()
        self.run.network.troubles = []
        for worker in self.run.workers:
            worker.signal(signal.SIGCONT)
        if not any(w.wanted for w in self.run.workers):
            self.run.add_worker()

    def close(self):
        self.sampler.close()
