# SPDX-License-Identifier: MIT
"""Reads the complete logs after recovery with ordinary clients: every topic from its beginning,
read_committed, until every sent job has its result or the time to recover is over."""
import time

from confluent_kafka import Consumer, TopicPartition

import load # noqa: F401  (puts wire on the path)
import wire
from checker import Logs

NAMES = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
TOPICS = {"pgpt.requests": "requests", "pgpt.results": "results", "pgpt.chunks": "chunks",
          "pgpt.events": "events", "pgpt.dlq": "dead"}


def keep(logs, decoder, message):
    kind = TOPICS[message.topic()]
    key = message.key().decode(errors="replace") if message.key() is not None else None
    if kind == "requests":
        logs.requests.append((message.partition(), message.offset(), key, message.value()))
    elif kind == "dead":
        logs.dead.append((key, message.value(), dict(message.headers() or [])))
    else:
        _, record = decoder.decode(message.value())
        at = message.timestamp()[1] / 1000
        getattr(logs, kind).append((message.partition(), message.offset(), at, record))


def whole(sent, logs):
    done = {r["job_id"] for _, _, _, r in logs.results}
    return set(sent.jobs) <= done and {k for k, _, _ in logs.dead} >= set(sent.junk)


def committed_offsets(bootstrap):
    c = Consumer({"bootstrap.servers": bootstrap, "group.id": "pgpt-workers", "enable.auto.commit": False})
    try:
        parts = [TopicPartition("pgpt.requests", p)
                 for p in c.list_topics("pgpt.requests", timeout=10).topics["pgpt.requests"].partitions]
        ends = {p.partition: c.get_watermark_offsets(p, timeout=10)[1] for p in parts}
        return {tp.partition: (max(tp.offset, 0), ends[tp.partition]) for tp in c.committed(parts, timeout=10)}
    finally:
        c.close()


def read_everything(bootstrap, schema_dir, sent, commit_samples, timeout):
    logs = Logs(committed=list(commit_samples))
    decoder = wire.Decoder(str(schema_dir), NAMES)
    c = Consumer({"bootstrap.servers": bootstrap, "group.id": "chaos-reader", "enable.auto.commit": False,
                  "isolation.level": "read_committed", "auto.offset.reset": "earliest"})
    c.assign([TopicPartition(t, p, 0) for t in TOPICS
              for p in c.list_topics(t, timeout=10).topics[t].partitions])
    deadline, quiet_since = time.time() + timeout, None
    while time.time() < deadline:
        batch = c.consume(1000, timeout=0.2)
        for m in batch:
            if m.error():
                raise RuntimeError(m.error())
            keep(logs, decoder, m)
        # late doubles would come now: wait for silence after the last result
        if batch or not whole(sent, logs):
            quiet_since = None
        elif quiet_since is None:
            quiet_since = time.time()
        elif time.time() - quiet_since > 3:
            offsets = committed_offsets(bootstrap)
            if all(o == e for o, e in offsets.values()):
                break
            quiet_since = None
    logs.final_committed = committed_offsets(bootstrap)
    c.close()
    return logs


def recorded_rows(url, sent, logs, timeout):
    import psycopg
    wanted = {r["job_id"] for _, _, _, r in logs.results}
    deadline = time.time() + timeout
    while True:
        with psycopg.connect(url) as db:
            rows = dict(db.execute("select job_id::text, status from job").fetchall())
            latency = dict(db.execute("select job_id::text, count(*) from job_latency group by 1").fetchall())
        if (wanted <= set(rows) and wanted <= set(latency)) or time.time() > deadline:
            return rows, latency
        time.sleep(0.3)
