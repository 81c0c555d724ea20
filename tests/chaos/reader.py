# SPDX-License-Identifier: MIT
"""Reads the complete logs after recovery with ordinary clients (confluent-kafka, fastavro, psycopg):
every topic from its beginning, read_committed, until every sent job has its result or the time to
recover is over."""
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

import load # noqa: F401  (puts wire on the path)
import wire
from checker import Logs, Read

NAMES = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
TOPICS = {"pgpt.requests": "requests", "pgpt.results": "results", "pgpt.chunks": "chunks",
          "pgpt.events": "events", "pgpt.dlq": "dead"}
QUIET_S = 3 # late doubles would come now
GROUP = "pgpt-workers"


class Reader:
    def __init__(self, bootstrap, schema_dir):
        self.bootstrap, self.logs = bootstrap, Logs()
        self.decoder = wire.Decoder(str(schema_dir), NAMES)
        self.consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "chaos-reader", "enable.auto.commit": False,
                                  "isolation.level": "read_committed", "auto.offset.reset": "earliest", "log_level": 0})
        self.consumer.assign([TopicPartition(t, p, 0) for t in TOPICS
                              for p in self.consumer.list_topics(t, timeout=30).topics[t].partitions])

    def keep(self, message):
        kind = TOPICS[message.topic()]
        key = message.key().decode(errors="replace") if message.key() is not None else None
        value = raw = message.value()
        if kind in ("results", "chunks"):
            self.logs.raw.setdefault((message.topic(), message.partition()), []).append((message.offset(), raw))
        if kind not in ("requests", "dead"):
            _, value = self.decoder.decode(value)
        getattr(self.logs, kind).append(Read(message.partition(), message.offset(), message.timestamp()[1] / 1000,
                                             key, dict(message.headers() or []), value))

    def poll(self):
        """Takes what is there; the number of new records."""
        batch = self.consumer.consume(1000, timeout=0.2)
        for message in batch:
            if not message.error():
                self.keep(message)
            elif not message.error().retriable(): # a broker that is away comes again
                raise RuntimeError(message.error())
        return len(batch)

    def whole(self, sent):
        done = {r.value["job_id"] for r in self.logs.results}
        return set(sent.jobs) <= done and {r.key for r in self.logs.dead} >= set(sent.junk)

    def committed_offsets(self):
        """partition -> (committed, end); what the brokers do not say counts as not committed."""
        c = Consumer({"bootstrap.servers": self.bootstrap, "group.id": GROUP, "enable.auto.commit": False, "log_level": 0})
        try:
            parts = [TopicPartition("pgpt.requests", p)
                     for p in c.list_topics("pgpt.requests", timeout=10).topics["pgpt.requests"].partitions]
            ends = {p.partition: c.get_watermark_offsets(p, timeout=10)[1] for p in parts}
            return {tp.partition: (max(tp.offset, 0), ends[tp.partition]) for tp in c.committed(parts, timeout=10)}
        except KafkaException:
            return {-1: (0, 1)}
        finally:
            c.close()

    def read_all(self, sent, timeout, tick):
        deadline, quiet_since = time.time() + timeout, None
        while time.time() < deadline:
            tick()
            if self.poll() or not self.whole(sent):
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.time()
            elif time.time() - quiet_since > QUIET_S:
                if all(o == e for o, e in self.committed_offsets().values()):
                    break
                quiet_since = None
        self.logs.final_committed = self.committed_offsets()
        return self.logs

    def close(self):
        self.consumer.close()


class Along:
    """A slow read_committed reader of results and chunks that reads while faults go on: what it is given
    must be what stands there in the end."""
    EVERY_S = 0.02 # a record; fewer than are written, so that it falls behind
    REST_S = 180

    def __init__(self, bootstrap):
        self.seen, self.next = {}, 0 # (topic, partition) -> [(offset, value)]
        self.statistics = "" # of the client; the last ones say where it stands, should it not come to the end
        self.consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "chaos-along", "enable.auto.commit": False,
                                  "isolation.level": "read_committed", "auto.offset.reset": "earliest", "log_level": 0,
                                  "queued.max.messages.kbytes": 64, "fetch.message.max.bytes": 4096,
                                  "statistics.interval.ms": 5000, "stats_cb": self.take_statistics})
        self.consumer.assign([TopicPartition(t, p, 0) for t in ("pgpt.results", "pgpt.chunks")
                              for p in self.consumer.list_topics(t, timeout=30).topics[t].partitions])

    def take_statistics(self, text):
        self.statistics = text

    def take(self, wait):
        message = self.consumer.poll(wait)
        if message is not None and not message.error():
            self.seen.setdefault((message.topic(), message.partition()), []).append((message.offset(), message.value()))
        return message is not None

    def step(self, now):
        if now >= self.next:
            self.next = now + self.EVERY_S
            self.take(0)

    def stand_still(self, until):
        self.next = until

    def rest(self, logs, statistics_file):
        """Reads on to the end of what the whole reader found; returns what it saw."""
        wanted, deadline = len(logs.results) + len(logs.chunks), time.time() + self.REST_S
        while sum(len(s) for s in self.seen.values()) < wanted and time.time() < deadline:
            self.take(0.5)
        if sum(len(s) for s in self.seen.values()) < wanted:
            statistics_file.write_text(self.statistics)
        return self.seen

    def close(self):
        self.consumer.close()


QUERIES = {
    "job": "select job_id::text, status, attempt, finals, tenant, model, worker, source_partition, source_offset, accepted_at,"
           " started_at, finished_at, updated_at, prompt_tokens, generated_tokens, queue_us, encode_us, first_token_us,"
           " decode_us, total_us, dead_lettered, error_class, error_message from job order by 1",
    "job_latency": "select job_id::text, status, tenant, model, worker, finished_at, prompt_tokens, generated_tokens, queue_us,"
                   " encode_us, first_token_us, decode_us, total_us from job_latency order by 1, 6",
    "latency_histogram": "select minute, model, tenant, metric, bucket, count from latency_histogram order by 1, 2, 3, 4, 5",
    "job_minute": "select minute, model, tenant, worker, status, jobs, prompt_tokens, generated_tokens, last_finished_at"
                  " from job_minute order by 1, 2, 3, 4, 5",
}


def tables_when(url, finals, timeout):
    """All rows of all tables, once so many jobs are final there, or when the time is over."""
    import psycopg
    deadline = time.time() + timeout
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as db:
                done = db.execute("select count(*) from job where finished_at is not null").fetchone()[0]
                if done >= finals or time.time() > deadline:
                    time.sleep(0.5) # late doubles
                    return {name: db.execute(query).fetchall() for name, query in QUERIES.items()}
        except psycopg.OperationalError:
            if time.time() > deadline:
                raise
        time.sleep(0.3)
