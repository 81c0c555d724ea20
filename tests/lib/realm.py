# SPDX-License-Identifier: MIT
"""A realm: topics, consumer group and database of one test, so that tests share a broker without
seeing one another. It sends requests and reads everything back with ordinary clients (confluent-kafka,
fastavro, psycopg); nothing of the product encodes or reads here."""
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

import wire
from cluster import ROOT, Worker, free_port

KINDS = ("requests", "chunks", "results", "events", "index", "control", "dlq")
READ = ("chunks", "results", "events", "dlq")
RECORDS = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
FINAL = ("completed", "failed", "cancelled", "expired")
DECODER = wire.Decoder(str(ROOT / "schema"), RECORDS)


def request(prompt="Where is the nearest station?", **fields):
    """A request with the contract's defaults; English to Russian unless the fields say otherwise."""
    record = {"job_id": str(uuid.uuid4()), "prompt": prompt, "target_language": "ru",
              "created_at_us": int(time.time() * 1e6)}
    record.update(fields)
    return record


def paced(milliseconds):
    """A fault that lets each step of the engine take so long: what a job is asked for while it runs comes in time on any
    machine."""
    return f"step:stall:{milliseconds}"


@dataclass
class Read:
    """One record of an output topic. value: bytes of a dead letter, else the decoded record."""
    partition: int
    offset: int
    at: float # the record's timestamp, seconds
    key: bytes
    headers: list
    value: object


class Reader:
    """All output topics of a realm from their beginning, as any read_committed consumer sees them."""

    def __init__(self, realm, isolation="read_committed"):
        self.realm = realm
        self.records = {kind: [] for kind in READ}
        self.results, self.chunks, self.events = defaultdict(list), defaultdict(list), defaultdict(list)
        self.kinds = {realm.topic(kind): kind for kind in READ}
        self.consumer = Consumer({"bootstrap.servers": realm.brokers, "group.id": f"reader-{uuid.uuid4()}",
                                  "enable.auto.commit": False, "isolation.level": isolation,
                                  "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10, "log_level": 0})
        self.consumer.assign([TopicPartition(topic, p, 0) for topic, kind in self.kinds.items()
                              for p in range(1 if kind == "dlq" else realm.partitions)])

    def poll(self, wait=0.02):
        """Takes what is there; the number of new records."""
        messages = self.consumer.consume(500, timeout=wait)
        for m in messages:
            if m.error():
                raise RuntimeError(m.error())
            kind = self.kinds[m.topic()]
            value = m.value()
            if kind != "dlq":
                name, value = DECODER.decode(value)
                assert name == {"chunks": "GenerationChunk", "results": "GenerationResult", "events": "JobEvent"}[kind]
            read = Read(m.partition(), m.offset(), m.timestamp()[1] / 1000, m.key(), m.headers() or [], value)
            self.records[kind].append(read)
            if kind != "dlq":
                getattr(self, kind)[value["job_id"]].append(read)
        return len(messages)

    def until(self, done, timeout, what):
        deadline = time.time() + timeout
        while not done():
            if time.time() > deadline:
                raise AssertionError(f"not within {timeout} s: {what()}")
            self.poll()

    def catch_up(self, kind):
        """Reads on to where the topic ends now: a fetch may bring a result before chunks that were written earlier."""
        topic = self.realm.topic(kind)
        partitions = [TopicPartition(topic, p) for p in range(self.realm.partitions)]
        asked = self.realm.admin.list_offsets({p: OffsetSpec.latest() for p in partitions})
        ends = {p.partition: future.result(30).offset for p, future in asked.items()}

        def behind():
            return [p.partition for p in self.consumer.position(partitions) if max(p.offset, 0) < ends[p.partition]]
        self.until(lambda: not behind(), 60, lambda: f"{topic}: partitions {behind()} are not read to {ends}")

    def quiet(self, seconds=1.0):
        """Reads on until nothing came for so long: late doubles would come now."""
        since = time.time()
        while time.time() - since < seconds:
            if self.poll():
                since = time.time()

    def close(self):
        self.consumer.close()


class Realm:
    def __init__(self, cluster, name, partitions=2, prefix=None, database=True):
        self.cluster, self.name, self.partitions = cluster, name, partitions
        self.prefix = prefix or name
        self.brokers = cluster.kafka.bootstrap
        self.database = cluster.postgres.copy(name) if database else None
        self.workers, self.readers, self.logs = [], [], Path(cluster.directory) / name
        self.group = f"{self.prefix}-workers"
        self.admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        self._create_topics()
        self.producer = Producer({"bootstrap.servers": self.brokers, "partitioner": "murmur2_random",
                                  "enable.idempotence": True, "linger.ms": 0, "message.max.bytes": 1500000,
                                  "log_level": 0})
        self.sent = {}
        self._reader = None

    def topic(self, kind):
        return f"{self.prefix}.{kind}"

    def _create_topics(self):
        topics = [NewTopic(self.topic(kind), 1 if kind in ("control", "dlq") else self.partitions, 1,
                           config={"max.message.bytes": "1114112"} if kind == "dlq" else {}) for kind in KINDS]
        for future in self.admin.create_topics(topics).values():
            future.result(30)

    # ---- workers ----

    def worker(self, name=None, faults=None, wait=True, **settings):
        """Starts a worker of this realm. settings: underscores for dots where the name has them, as
        in PGPT_*; faults: the PGPT_FAULT text, which takes the build that has fault points; paced(ms)
        is one that makes jobs run as long as a test needs them."""
        build = self.cluster.build if faults is None else self.cluster.faults_build()
        env = {"PGPT_BROKERS": self.brokers, "PGPT_GROUP": self.group, "PGPT_RECORDER_GROUP": f"{self.prefix}-recorder",
               "PGPT_MODEL": str(ROOT / "models/prometheus-mini"), "PGPT_ENGINE_THREADS": "1",
               "PGPT_HTTP_PORT": str(free_port()), "PGPT_TRANSACTION_TIMEOUT_MS": "5000",
               "PGPT_KAFKA_CALL_TIMEOUT_MS": "4000", "PGPT_WORKER_DRAIN_MS": "20000",
               "PGPT_RECORDER_ENABLED": "true" if self.database else "false"}
        env.update({f"PGPT_TOPIC_{kind.upper()}": self.topic(kind) for kind in KINDS})
        if self.database:
            env["PGPT_DATABASE_URL"] = self.database
        if faults:
            env["PGPT_FAULT"] = faults
        env.update({f"PGPT_{k.upper()}": str(v) for k, v in settings.items()})
        worker = Worker(name or f"{self.name}-{len(self.workers) + 1}", self.logs, env, build / "pgpt-worker")
        self.workers.append(worker)
        worker.start()
        return worker.wait_ready() if wait else worker

    # ---- sending ----

    def produce(self, kind, key, value, headers=None, partition=None):
        extra = {} if partition is None else {"partition": partition}
        self.producer.produce(self.topic(kind), key=key, value=value, headers=headers or [],
                              on_delivery=self._delivered, **extra)
        self.producer.poll(0)

    @staticmethod
    def _delivered(problem, _message):
        if problem:
            raise RuntimeError(f"a record was not accepted: {problem}")

    def flush(self):
        assert self.producer.flush(30) == 0, "the broker does not accept records"

    def send(self, *requests, headers=None, schema=wire.GENERATION_REQUEST, partition=None):
        """Sends the requests; returns the first one's job_id."""
        for record in requests:
            self.sent.setdefault(record["job_id"], record)
            self.produce("requests", record["job_id"], wire.encode(schema, record), headers, partition)
        self.flush()
        return requests[0]["job_id"] if requests else None

    def cancel(self, job_id, action="cancel"):
        self.produce("control", job_id, wire.encode(wire.JOB_CONTROL, {
            "job_id": job_id, "action": action, "reason": "test", "created_at_us": int(time.time() * 1e6)}))
        self.flush()

    # ---- reading ----

    @property
    def reader(self):
        if self._reader is None:
            self._reader = self.new_reader()
        return self._reader

    def new_reader(self, isolation="read_committed"):
        self.readers.append(Reader(self, isolation))
        return self.readers[-1]

    def result(self, job_id, timeout=60):
        return self.results([job_id], timeout)[job_id]

    def results(self, ids, timeout=60):
        """job_id -> result, once all of them are there; each must be the only one so far. timeout: without a new one."""
        reader, ids = self.reader, list(ids)

        def missing():
            return sum(not reader.results.get(i) for i in ids)
        while left := missing():
            reader.until(lambda: missing() < left, timeout, lambda: f"{left} of {len(ids)} results do not come; {self.state()}")
        for i in ids:
            assert len(reader.results[i]) == 1, f"{i} has {len(reader.results[i])} results"
        reader.catch_up("chunks")
        return {i: reader.results[i][0].value for i in ids}

    def run(self, *requests, timeout=60, **how):
        """Sends them and waits: their results in the same order."""
        self.send(*requests, **how)
        results = self.results([r["job_id"] for r in requests], timeout)
        return [results[r["job_id"]] for r in requests]

    def chunks(self, job_id):
        return [read.value for read in self.reader.chunks[job_id]]

    def wait_chunk(self, job_id, timeout=90):
        reader = self.reader
        reader.until(lambda: reader.chunks.get(job_id), timeout, lambda: f"a chunk of {job_id}; {self.state()}")

    def final_events(self, job_id, timeout=90, count=1):
        reader = self.reader

        def finals():
            return [e.value for e in reader.events[job_id] if e.value["state"] in FINAL]
        reader.until(lambda: len(finals()) >= count, timeout, lambda: f"a final event of {job_id}")
        return finals()

    def dead_letters(self, count, timeout=90):
        reader = self.reader
        reader.until(lambda: len(reader.records["dlq"]) >= count, timeout,
                     lambda: f"{len(reader.records['dlq'])} of {count} dead letters; {self.state()}")
        return reader.records["dlq"]

    def committed(self):
        """partition -> committed offset of the workers' group (0 = none yet)."""
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": self.group, "enable.auto.commit": False,
                      "log_level": 0})
        try:
            return {tp.partition: max(tp.offset, 0) for tp in c.committed(
                [TopicPartition(self.topic("requests"), p) for p in range(self.partitions)], timeout=10)}
        finally:
            c.close()

    def ends(self):
        """partition -> end of the requests topic."""
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": "ends", "enable.auto.commit": False,
                      "log_level": 0})
        try:
            return {p: c.get_watermark_offsets(TopicPartition(self.topic("requests"), p), timeout=10)[1]
                    for p in range(self.partitions)}
        finally:
            c.close()

    def wait_lag_zero(self, timeout=90):
        deadline = time.time() + timeout
        while self.committed() != self.ends():
            assert time.time() < deadline, f"lag stays: committed {self.committed()} of {self.ends()}; {self.state()}"
            time.sleep(0.1)

    def rows(self, query, parameters=None):
        import psycopg
        from psycopg.rows import dict_row
        with psycopg.connect(self.database, autocommit=True, row_factory=dict_row) as db:
            return db.execute(query, parameters).fetchall()

    def wait_rows(self, query, parameters, done, timeout=90):
        """Asks SQL until done(rows); returns the rows."""
        deadline = time.time() + timeout
        while True:
            rows = self.rows(query, parameters)
            if done(rows):
                return rows
            assert time.time() < deadline, f"not within {timeout} s: {query} {parameters} gives {rows[:5]}; {self.state()}"
            time.sleep(0.1)

    # ---- what every run must hold ----

    def check_exactly_once(self, status="completed", quiet=1.0):
        """Every request sent has exactly one result and one final event, and nothing else has any."""
        results = self.results(self.sent)
        self.reader.quiet(quiet)
        assert {i: len(r) for i, r in self.reader.results.items()} == {i: 1 for i in self.sent}
        for job_id, result in results.items():
            if status:
                assert result["status"] == status, f"{job_id}: {result['status']} {result['error']}"
            finals = self.final_events(job_id)
            assert [e["state"] for e in finals] == [result["status"]], job_id
        return results

    def state(self):
        return "; ".join(f"{w.name} {'runs' if w.alive else 'exited'}"
                         + (f": {w.tail(2)}" if not w.alive else f", ready: {w.http('/readyz')}") for w in self.workers)

    def close(self, keep_database=False):
        for worker in self.workers:
            worker.kill()
        for reader in self.readers:
            reader.close()
        self.producer.flush(1)
        self.admin.delete_topics([self.topic(kind) for kind in KINDS])
        if self.database and not keep_database: # hundreds of files each: at the end that takes a minute
            self.cluster.postgres.drop(self.name)


def joined(chunks, sequence=0):
    """The chunks of one sequence in order, doubles of a replay dropped after a look that they are equal."""
    by_seq = {}
    for c in (c for c in chunks if c["sequence"] == sequence):
        first = by_seq.setdefault(c["seq"], c)
        same = ("token_start", "text_start", "text", "token_ids", "finish_reason")
        assert all(first[f] == c[f] for f in same), f"seq {c['seq']}: attempts {first['attempt']} and {c['attempt']} differ"
    assert sorted(by_seq) == list(range(len(by_seq))), f"seq {sorted(by_seq)}"
    return [by_seq[n] for n in sorted(by_seq)]


def check_stream(chunks, result):
    """Chunks of all sequences against the result, byte for byte. Returns the chunks by sequence."""
    streams = []
    assert {c["sequence"] for c in chunks} == set(range(len(result["sequences"])))
    for n, sequence in enumerate(result["sequences"]):
        parts, text, ids = joined(chunks, n), b"", []
        for c in parts:
            assert c["text_start"] == len(text), f"sequence {n} seq {c['seq']}: text_start"
            assert c["token_start"] == len(ids), f"sequence {n} seq {c['seq']}: token_start"
            text += c["text"].encode()
            ids += c["token_ids"]
            assert c["engine_id"] == result["engine_id"]
        assert text == sequence["text"].encode(), f"sequence {n}"
        assert ids == sequence["token_ids"], f"sequence {n}"
        assert [c["finish_reason"] for c in parts] == [None] * (len(parts) - 1) + [sequence["finish_reason"]]
        streams.append(parts)
    return streams
