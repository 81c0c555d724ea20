# SPDX-License-Identifier: MIT
"""What is sent while faults are injected: requests with retries and duplicates on purpose, invalid
ones, junk, cancels, poison, and the truth about them that the checker needs. Everything is drawn from
one seed."""
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
    """The truth. jobs: job_id -> request, of all that decode; junk: key -> bytes; the sets hold job_ids
    of jobs that must not simply complete."""

    def __init__(self):
        self.jobs, self.junk = {}, {}
        self.cancelled_early, self.cancelled_late, self.invalid, self.poison = set(), set(), set(), set()
        self.duplicates = 0

    @property
    def healthy(self):
        """Requests that the undisturbed engine answers too."""
        return [r for i, r in self.jobs.items() if i not in self.invalid | self.poison | self.cancelled_early]


def draw_uuid(rng):
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_request(rng, unique):
    language = rng.choice(["ru", "en"])
    record = {
        "job_id": draw_uuid(rng),
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
    """Sends at a fixed rate in the caller's thread: call step() often. It never waits for a broker."""

    def __init__(self, bootstrap, seed, rate, poison_id):
        self.rng = random.Random(seed)
        self.sent = Sent()
        self.rate, self.poison_id = rate, poison_id
        self.count = 0
        self.failed = []
        self.started = time.time()
        self.recent = []
        # Retries without end: a broker may be down, or start slowly; duplicates are then on purpose, not by accident.
        self.producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random",
                                  "enable.idempotence": True, "message.timeout.ms": 0,
                                  "linger.ms": 5, "log_level": 0})

    def _produce(self, topic, key, value, then=None):
        def delivered(problem, _message):
            if problem:
                self.failed.append(str(problem))
            elif then:
                then()
        self.producer.produce(topic, key=key, value=value, on_delivery=delivered)

    def _cancel(self, job_id, then=None):
        self._produce("pgpt.control", job_id, wire.encode(wire.JOB_CONTROL, {
            "job_id": job_id, "action": "cancel", "reason": "chaos", "created_at_us": int(time.time() * 1e6)}), then)

    def _send_request(self, record):
        payload = wire.encode(wire.GENERATION_REQUEST, record)
        self.sent.jobs[record["job_id"]] = record
        self.recent = (self.recent + [(record["job_id"], payload)])[-200:]
        return payload

    def _send_job(self):
        rng, sent = self.rng, self.sent
        record = draw_request(rng, self.count)
        job_id, kind = record["job_id"], rng.random()
        if kind < 0.01:
            sent.invalid.add(job_id)
            record.update(temperature=-1.0, max_length=100000)
        payload = self._send_request(record)
        if 0.01 <= kind < 0.03: # the request leaves when its cancel is acknowledged
            sent.cancelled_early.add(job_id)
            self._cancel(job_id, lambda: self._produce("pgpt.requests", job_id, payload))
            self.recent.pop() # a retry must not overtake the cancel either
        else:
            self._produce("pgpt.requests", job_id, payload)
        if 0.03 <= kind < 0.05:
            sent.cancelled_late.add(job_id)
            self._cancel(job_id)
        if rng.random() < 0.05 and self.recent: # an upstream retry, near or far
            again_id, again = rng.choice(self.recent)
            sent.duplicates += 1
            self._produce("pgpt.requests", again_id, again)

    def _send_junk(self):
        key = f"junk-{len(self.sent.junk)}"
        value = bytes(self.rng.getrandbits(8) for _ in range(self.rng.randint(1, 200))) + key.encode()
        self.sent.junk[key] = value
        self._produce("pgpt.requests", key, value)

    def send_poison(self):
        """Every worker's environment makes it die when this job starts (worker/fault.h)."""
        if self.poison_id in self.sent.poison:
            return False
        self.sent.poison.add(self.poison_id)
        record = dict(draw_request(self.rng, "poison"), job_id=self.poison_id, num_return_sequences=1)
        self._produce("pgpt.requests", self.poison_id, self._send_request(record))
        return True

    def step(self):
        due = int((time.time() - self.started) * self.rate)
        while self.count < due:
            self.count += 1
            if self.rng.random() < 0.01:
                self._send_junk()
            else:
                self._send_job()
        self.producer.poll(0)

    def finish(self, tick):
        """Waits until everything sent is acknowledged; tick() is called meanwhile."""
        deadline = time.time() + 300
        while self.producer.flush(0.2) and time.time() < deadline:
            tick()
        left = len(self.producer)
        if left or self.failed:
            raise RuntimeError(f"{left} requests not sent, errors {self.failed[:3]}")
