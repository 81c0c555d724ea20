# SPDX-License-Identifier: MIT
"""What is sent while faults are injected: requests with retries and duplicates on purpose, junk,
cancels, and the truth about them that the checker needs. Everything is drawn from one seed."""
import random
import sys
import time
import uuid
from pathlib import Path

from confluent_kafka import Producer

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "blackbox")]
import wire # noqa: E402
from blackbox import SENTENCES # noqa: E402


class Sent:
    """The truth: job_id -> request; payloads of junk; cancels sent before their request."""

    def __init__(self):
        self.jobs, self.junk, self.cancelled_early = {}, {}, set()
        self.acknowledged = set()


def draw_request(rng, unique):
    language = rng.choice(["ru", "en"])
    record = {
        "job_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "prompt": rng.choice(SENTENCES[language]) + f" {unique}",
        "target_language": language,
        "max_length": rng.choice([8, 16, 32, 48]),
        "created_at_us": int(time.time() * 1e6),
        "tenant": rng.choice(["", "a", "b"]),
        "priority": rng.randint(-2, 2),
    }
    kind = rng.random()
    if kind < 0.5:
        record.update(stream=True, stream_interval=rng.choice([1, 1, 4]))
    if rng.random() < 0.25:
        record.update(do_sample=True, temperature=0.9, top_k=40, num_return_sequences=rng.randint(1, 3))
    elif rng.random() < 0.1:
        record.update(num_beams=3)
    return record


class Load:
    """Sends at a fixed rate from its own thread of control: call step() often."""

    def __init__(self, bootstrap, seed, rate):
        self.rng = random.Random(seed)
        self.sent = Sent()
        self.rate = rate
        self.count = 0
        self.failed = []
        self.started = time.time()
        self.recent = []
        # Retries for minutes: a broker may be down; duplicates are then on purpose, not by accident.
        self.producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random",
                                  "enable.idempotence": True, "message.timeout.ms": 180000,
                                  "linger.ms": 5, "log_level": 0})

    def _produce(self, topic, key, value, job_id=None):
        def delivered(err, _msg):
            if err:
                self.failed.append(str(err))
            elif job_id:
                self.sent.acknowledged.add(job_id)
        self.producer.produce(topic, key=key, value=value, on_delivery=delivered)

    def _send_job(self):
        rng, sent = self.rng, self.sent
        record = draw_request(rng, self.count)
        job_id = record["job_id"]
        payload = wire.encode(wire.GENERATION_REQUEST, record)
        sent.jobs[job_id] = record
        if rng.random() < 0.02:
            sent.cancelled_early.add(job_id)
            self._produce("pgpt.control", job_id, wire.encode(wire.JOB_CONTROL, {
                "job_id": job_id, "action": "cancel", "reason": "chaos", "created_at_us": int(time.time() * 1e6)}))
            self.producer.flush(120) # the cancel is in the log before its request is
        self._produce("pgpt.requests", job_id, payload, job_id)
        self.recent = (self.recent + [(job_id, payload)])[-200:]
        if rng.random() < 0.05: # an upstream retry, near or far
            again_id, again = rng.choice(self.recent)
            self._produce("pgpt.requests", again_id, again, again_id)

    def _send_junk(self):
        key = f"junk-{len(self.sent.junk)}"
        value = bytes(self.rng.getrandbits(8) for _ in range(self.rng.randint(1, 200))) + key.encode()
        self.sent.junk[key] = value
        self._produce("pgpt.requests", key, value)

    def step(self):
        due = int((time.time() - self.started) * self.rate)
        while self.count < due:
            self.count += 1
            if self.rng.random() < 0.01:
                self._send_junk()
            else:
                self._send_job()
        self.producer.poll(0)

    def finish(self):
        left = self.producer.flush(200)
        if left or self.failed:
            raise RuntimeError(f"{left} requests not sent, errors {self.failed[:3]}")
