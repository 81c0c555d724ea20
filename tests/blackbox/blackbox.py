# SPDX-License-Identifier: MIT
"""A client that knows only the wire contract: 300 mixed jobs, 16 kinds of bad requests, junk bytes
and duplicates against a running worker. It uses none of the product's code, reads everything back
with ordinary libraries and says what does not hold.

    blackbox.py --brokers 127.0.0.1:9192 --schemas schema [--database URL] [--jobs 300] [--seed 1]

The last line is `jobs J, checks C, violations V`; the exit code is 0 only with V = 0."""
import argparse
import json
import random
import sys
import time
import uuid
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import wire # noqa: E402

SENTENCES = {
    "ru": ["The weather is fine today.", "Where is the nearest station?", "I have never seen the sea.",
           "She reads two books a week.", "Please close the door quietly.", "We waited for an hour.",
           "This program cannot open the file.", "He said that he would come tomorrow."],
    "en": ["Сегодня хорошая погода.", "Где ближайшая станция?", "Я никогда не видел моря.",
           "Она читает две книги в неделю.", "Закройте, пожалуйста, дверь.", "Мы ждали целый час.",
           "Программа не может открыть файл.", "Он сказал, что придёт завтра."],
}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

# field, a bad value, and what must stand in the message beside the field's name
BAD = [
    ({"max_length": 0}, "max_length"),
    ({"max_length": 100000}, "max_length"),
    ({"min_length": 9, "max_length": 5}, "min_length"),
    ({"temperature": 0.0, "do_sample": True}, "temperature"),
    ({"temperature": 101.0}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"length_penalty": 11.0}, "length_penalty"),
    ({"num_beams": 9}, "num_beams"),
    ({"num_return_sequences": 2}, "num_return_sequences"),
    ({"num_beams": 2, "do_sample": True}, "do_sample"),
    ({"stop": ["x" * 65]}, "stop"),
    ({"stream_interval": 0}, "stream_interval"),
    ({"target_language": "xx"}, "target_language"),
    ({"model": "no-such-model"}, "model"),
    ({"prompt": ""}, "prompt"),
    ({"priority": 11}, "priority"),
    ({"source_tokens": [5, 10**6, 3]}, "source_tokens"),
    ({"author": "nobody"}, "author"),
]


class Report:
    def __init__(self):
        self.checks = 0
        self.violations = []

    def check(self, ok, job_id, what):
        self.checks += 1
        if not ok:
            self.violations.append(f"{job_id}: {what}")


def request(rng, **fields):
    language = rng.choice(["ru", "en"])
    record = {
        "job_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "prompt": rng.choice(SENTENCES[language]),
        "target_language": language,
        "created_at_us": int(time.time() * 1e6),
    }
    record.update(fields)
    return record


def mixed_jobs(rng, count):
    """Every feature of the contract, in turn."""
    now = int(time.time() * 1e6)
    kinds = [
        lambda: {},
        lambda: {"stream": True},
        lambda: {"stream": True, "stream_interval": rng.randint(2, 8)},
        lambda: {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": rng.getrandbits(40)},
        lambda: {"do_sample": True, "num_return_sequences": rng.randint(2, 8), "stream": True},
        lambda: {"num_beams": rng.randint(2, 8), "early_stopping": rng.random() < 0.5},
        lambda: {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "stream": True},
        lambda: {"repetition_penalty": 1.3, "author": f"author_{rng.randint(0, 9)}"},
        lambda: {"max_length": rng.randint(1, 6), "stream": True},
        lambda: {"min_length": 20, "max_length": 40},
        lambda: {"stop": ["е", "e"], "stream": True, "stream_interval": rng.randint(1, 3)},
        lambda: {"prompt": "", "source_tokens": [5, 445, 665, 2342, 568, 3], "target_language": ""},
        lambda: {"deadline_us": now - 1},
        lambda: {"deadline_us": now + 600_000_000, "priority": rng.randint(-10, 10)},
        lambda: {"tenant": rng.choice(["a", "b", "c"]), "metadata": {"k": "значение", "empty": ""}},
    ]
    return [request(rng, **kinds[i % len(kinds)]()) for i in range(count)]


def junk(rng, good):
    yield b""
    yield bytes(rng.getrandbits(8) for _ in range(300))
    yield b"\xc3\x01" + b"\0" * 8 + b"abc"
    yield good[: len(good) // 2]
    yield b"\x00\x00\x00\x00\x07" + good[10:]
    yield wire.encode(wire.GENERATION_REQUEST, {"job_id": "not-a-uuid", "prompt": "x", "created_at_us": 0})


class Log:
    """Reads topics from the offsets they had at the start."""

    def __init__(self, brokers, topics, isolation):
        self.consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"blackbox-{uuid.uuid4()}",
                                  "enable.auto.commit": False, "isolation.level": isolation,
                                  "fetch.wait.max.ms": 10})
        parts = []
        for topic in topics:
            meta = self.consumer.list_topics(topic, timeout=10).topics[topic]
            for p in meta.partitions:
                high = self.consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
                parts.append(TopicPartition(topic, p, high))
        self.consumer.assign(parts)
        self.messages = []

    def poll(self):
        for m in self.consumer.consume(500, timeout=0.05):
            if m.error():
                raise RuntimeError(m.error())
            self.messages.append(m)


def produce_all(producer, records):
    failed = []

    def delivered(err, _msg):
        if err:
            failed.append(str(err))

    for key, value in records:
        producer.produce("pgpt.requests", key=key, value=value, headers=[("traceparent", TRACE)],
                         on_delivery=delivered)
        producer.poll(0)
    if producer.flush(30) or failed:
        sys.exit(f"could not send the requests: {failed[:3]}")


def check_stream(report, job, result, chunks):
    job_id = job["job_id"]
    for n, sequence in enumerate(result["sequences"]):
        text, ids = b"", []
        # a redelivered job streams the same bytes again: drop what is already here
        parts = sorted((c for c in chunks if c["sequence"] == n), key=lambda c: (c["seq"], c["attempt"]))
        seen, last = set(), None
        for c in parts:
            if c["seq"] in seen:
                continue
            seen.add(c["seq"])
            report.check(c["token_start"] == len(ids), job_id, f"chunk {c['seq']} token_start {c['token_start']}")
            report.check(c["text_start"] == len(text), job_id, f"chunk {c['seq']} text_start {c['text_start']}")
            report.check(last is None or last["finish_reason"] is None, job_id, "a chunk after the last one")
            text += c["text"].encode()
            ids += c["token_ids"]
            last = c
        report.check(sorted(seen) == list(range(len(seen))), job_id, f"seq numbers {sorted(seen)}")
        report.check(text == sequence["text"].encode(), job_id, f"chunks {text!r} result {sequence['text']!r}")
        report.check(ids == sequence["token_ids"], job_id, "chunk ids differ from the result's")
        report.check(last is not None and last["finish_reason"] == sequence["finish_reason"], job_id,
                     "the last chunk's finish_reason differs")


def check_completed(report, job, result):
    job_id = job["job_id"]
    wanted = job.get("num_return_sequences", 1)
    report.check(len(result["sequences"]) == wanted, job_id, f"{len(result['sequences'])} sequences, not {wanted}")
    for s in result["sequences"]:
        report.check(len(s["token_ids"]) <= job.get("max_length", 128), job_id, "more tokens than max_length")
        report.check(s["finish_reason"] in ("eos", "length", "stop"), job_id, f"finish_reason {s['finish_reason']}")
        if not job.get("do_sample"): # drawn from all pieces, lone bytes come: they form no character
            report.check("\ufffd" not in s["text"], job_id, "a split character")
        if s["finish_reason"] == "eos":
            report.check(len(s["token_ids"]) >= job.get("min_length", 0), job_id, "EOS before min_length")
        for stop in job.get("stop", []):
            report.check(stop not in s["text"], job_id, f"the text holds the stop string {stop!r}")
        if "num_beams" not in job:
            report.check(s["score"] <= 0, job_id, f"score {s['score']}")
    report.check(result["usage"]["prompt_tokens"] > 0, job_id, "usage.prompt_tokens is 0")
    for key, value in result["timings"].items():
        report.check(value >= 0, job_id, f"timings.{key} is negative")
    report.check(result["error"] is None, job_id, f"error {result['error']}")


def check_result(report, job, result, chunks):
    expired = (job.get("deadline_us") or 2**62) < job["created_at_us"] + 1
    status = "expired" if expired else "completed"
    report.check(result["status"] == status, job["job_id"], f"status {result['status']}: {result['error']}")
    report.check(result["metadata"] == job.get("metadata", {}), job["job_id"], "metadata differ")
    if result["status"] == "completed":
        check_completed(report, job, result)
        if job.get("stream"):
            check_stream(report, job, result, chunks)
        else:
            report.check(not chunks, job["job_id"], "chunks of a job that does not stream")


def check_bad(report, job, field, result):
    report.check(result["status"] == "failed", job["job_id"], f"bad {field}: {result['status']}")
    error = result["error"] or {"class": "", "message": ""}
    report.check(error["class"] == "invalid", job["job_id"], f"bad {field}: class {error['class']}")
    report.check(field in error["message"], job["job_id"], f"bad {field}: message {error['message']!r}")


def check_sql(report, database, jobs, results):
    import psycopg
    deadline = time.time() + 60
    wanted = {j["job_id"]: results[j["job_id"]]["status"] for j in jobs if j["job_id"] in results}
    rows = {}
    with psycopg.connect(database, autocommit=True) as db:
        while time.time() < deadline:
            found = db.execute("select job_id::text, status from job where job_id = any(%s::uuid[])",
                               (list(wanted),)).fetchall()
            rows = dict(found)
            if rows == wanted:
                break
            time.sleep(0.2)
    for job_id, status in wanted.items():
        report.check(rows.get(job_id) == status, job_id, f"SQL says {rows.get(job_id)}, the result {status}")


def collect(args, logs, wanted, dead_letters):
    deadline = time.time() + args.timeout
    quiet_since = None
    while time.time() < deadline:
        before = sum(len(log.messages) for log in logs.values())
        for log in logs.values():
            log.poll()
        now_total = sum(len(log.messages) for log in logs.values())
        results = {m.key().decode() for m in logs["pgpt.results"].messages if m.key()}
        done = wanted <= results and len(logs["pgpt.dlq"].messages) >= dead_letters
        if now_total != before:
            deadline = time.time() + args.timeout
        if not done or now_total != before:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = time.time()
        elif time.time() - quiet_since > 3: # late doubles would come now
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--schemas", default="schema", help="directory of the published .avsc files")
    parser.add_argument("--database", help="PostgreSQL URL; leaves SQL unchecked without")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--timeout", type=float, default=180, help="seconds without a new record")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    rng = random.Random(args.seed)
    report = Report()
    names = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
    decoder = wire.Decoder(args.schemas, names)
    report.check(wire.fingerprint(wire.GENERATION_REQUEST) in decoder.by_fingerprint, "GenerationRequest",
                 "the published schema is not the contract's")
    topics = ["pgpt.chunks", "pgpt.results", "pgpt.events", "pgpt.dlq"]
    missing = set(topics) - set(AdminClient({"bootstrap.servers": args.brokers}).list_topics(timeout=10).topics)
    if missing:
        sys.exit(f"topics missing: {sorted(missing)}; create them with `pgpt topics --create`")
    logs = {t: Log(args.brokers, [t], "read_committed") for t in topics}

    jobs = mixed_jobs(rng, args.jobs)
    bad = [(request(rng, **fields), field) for fields, field in BAD]
    good_bytes = wire.encode(wire.GENERATION_REQUEST, jobs[0])
    junk_payloads = list(junk(rng, good_bytes))
    records = [(j["job_id"].encode(), wire.encode(wire.GENERATION_REQUEST, j)) for j in jobs + [b for b, _ in bad]]
    records += [(b"junk-%d" % i, payload) for i, payload in enumerate(junk_payloads)]
    rng.shuffle(records)
    records += rng.sample([r for r in records if not r[0].startswith(b"junk")], 40) # retries of upstream
    cancelled = request(rng, max_length=100)
    producer = Producer({"bootstrap.servers": args.brokers, "partitioner": "murmur2_random",
                         "enable.idempotence": True, "linger.ms": 5})
    producer.produce("pgpt.control", key=cancelled["job_id"], value=wire.encode(wire.JOB_CONTROL, {
        "job_id": cancelled["job_id"], "action": "cancel", "reason": "test",
        "created_at_us": int(time.time() * 1e6)}))
    producer.flush(10)
    time.sleep(0.5) # the cancel comes before its request, in another topic
    records.append((cancelled["job_id"].encode(), wire.encode(wire.GENERATION_REQUEST, cancelled)))

    started = time.time()
    produce_all(producer, records)
    wanted = {j["job_id"] for j in jobs} | {b["job_id"] for b, _ in bad} | {cancelled["job_id"]}
    collect(args, logs, wanted, len(junk_payloads))
    print(f"{len(records)} records sent, read back after {time.time() - started:.1f} s")

    results, chunks, finals = {}, {}, {}
    for m in logs["pgpt.results"].messages:
        name, r = decoder.decode(m.value())
        report.check(name == "GenerationResult", "pgpt.results", f"holds a {name}")
        report.check(r["job_id"] not in results, r["job_id"], "two results")
        report.check(r["job_id"] in wanted, r["job_id"], "a result for a request never sent")
        report.check(m.key().decode() == r["job_id"], r["job_id"], "the record's key is not the job_id")
        report.check(dict(m.headers() or []).get("traceparent") == TRACE.encode(), r["job_id"], "traceparent lost")
        results[r["job_id"]] = r
    for m in logs["pgpt.chunks"].messages:
        _, c = decoder.decode(m.value())
        chunks.setdefault(c["job_id"], []).append(c)
    for m in logs["pgpt.events"].messages:
        _, e = decoder.decode(m.value())
        if e["state"] in ("completed", "failed", "cancelled", "expired"):
            report.check(e["job_id"] not in finals, e["job_id"], "two final events")
            finals[e["job_id"]] = e
    for job in jobs:
        r = results.get(job["job_id"])
        report.check(r is not None, job["job_id"], f"no result: {json.dumps(job, ensure_ascii=False)}")
        if r:
            check_result(report, job, r, chunks.get(job["job_id"], []))
            event = finals.get(job["job_id"])
            report.check(event is not None and event["state"] == r["status"], job["job_id"], f"final event {event}")
    for job, field in bad:
        r = results.get(job["job_id"])
        report.check(r is not None, job["job_id"], f"no result for bad {field}")
        if r:
            check_bad(report, job, field, r)
    r = results.get(cancelled["job_id"])
    report.check(r is not None and r["status"] == "cancelled", cancelled["job_id"], "an early cancel did not count")
    dead = [m.value() or b"" for m in logs["pgpt.dlq"].messages]
    report.check(sorted(dead) == sorted(junk_payloads), "pgpt.dlq", f"{len(dead)} records, not the junk as sent")
    for m in logs["pgpt.dlq"].messages:
        headers = dict(m.headers() or [])
        for name in ("topic", "partition", "offset", "attempt", "error_class", "error_message", "worker", "at_us"):
            report.check(f"dlq.{name}" in headers, "pgpt.dlq", f"header dlq.{name} is missing")
    # Greedy search is a function of the request: the same prompt gives the same text.
    texts = {}
    for job in jobs:
        if set(job) <= {"job_id", "prompt", "target_language", "created_at_us", "stream", "stream_interval"}:
            r = results.get(job["job_id"])
            if r and r["sequences"]:
                texts.setdefault((job["prompt"], job["target_language"]), set()).add(r["sequences"][0]["text"])
    for prompt, seen in texts.items():
        report.check(len(seen) == 1, prompt, f"different texts {seen}")
    if args.database:
        check_sql(report, args.database, jobs, results)
    for line in report.violations[:40]:
        print("VIOLATION", line)
    print(f"jobs {len(wanted)}, checks {report.checks}, violations {len(report.violations)}")
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
