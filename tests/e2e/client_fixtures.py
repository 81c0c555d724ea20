# SPDX-License-Identifier: MIT
"""What the tests of `pgpt` stand on: a worker made of ordinary libraries (confluent-kafka, fastavro)
that does what a test's prompt says, topics of their own for each test, and a way to run the command.
Nothing of the product encodes, decodes or merges here."""
import os
import subprocess
import sys
import threading
import time
import uuid
from functools import cached_property
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/lib"))
import wire # noqa: E402

PGPT = Path(os.environ.get("PGPT_BUILD_DIR", ROOT / "build")).resolve() / "pgpt"
KINDS = ("requests", "chunks", "results", "events", "index", "control", "dlq")
NAMES = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
PARTITIONS = 3
DECODER = wire.Decoder(str(ROOT / "schema"), NAMES)
SCHEMAS = {name: schema for name, schema in DECODER.by_fingerprint.values()}


@pytest.fixture(scope="session")
def brokers(request):
    """The session's broker; PGPT_TEST_BROKERS names one that runs already."""
    given = os.environ.get("PGPT_TEST_BROKERS")
    return given or request.getfixturevalue("cluster").kafka.bootstrap


@pytest.fixture(scope="session")
def database_url(request):
    """A database with the migrations; PGPT_TEST_DATABASE_URL names one."""
    given = os.environ.get("PGPT_TEST_DATABASE_URL")
    return given or request.getfixturevalue("cluster").postgres.url


def encode(name, record):
    return wire.encode(SCHEMAS[name], record)


def murmur2(data):
    """Kafka's default partitioner hash, as its protocol's clients must agree on it."""
    length, m, mask = len(data), 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ length) & mask
    for i in range(0, length - length % 4, 4):
        k = int.from_bytes(data[i:i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = data[length - length % 4:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


class Client:
    """`pgpt` with topics of its own."""

    def __init__(self, brokers):
        self.brokers = brokers
        self.prefix = f"client-{uuid.uuid4().hex[:8]}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("PGPT_")}
        self.env.update(PGPT_BROKERS=brokers, TERM="dumb")
        self.env.update({f"PGPT_TOPIC_{kind.upper()}": self.topic(kind) for kind in KINDS})

    def topic(self, kind):
        return f"{self.prefix}.{kind}"

    def start(self, *arguments, **how):
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               "env": self.env, **how}
        return subprocess.Popen([str(PGPT), *map(str, arguments)], **how)

    def run(self, *arguments, stdin=b"", code=0, timeout=120, env=None):
        """Runs to its end; the exit code must be the one expected."""
        done = subprocess.run([str(PGPT), *map(str, arguments)], input=stdin, capture_output=True, timeout=timeout,
                              env={**self.env, **(env or {})})
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert done.returncode == code, f"{arguments}: exit {done.returncode}, not {code}\n{out}\n{err}"
        return Output(out, err)

    @cached_property
    def admin(self):
        return AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})

    def records(self, kind, isolation="read_committed"):
        """Everything in one topic now."""
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": f"read-{uuid.uuid4()}", "enable.auto.commit": False,
                      "isolation.level": isolation, "auto.offset.reset": "earliest", "enable.partition.eof": True,
                      "fetch.wait.max.ms": 10, "log_level": 0})
        partitions = c.list_topics(self.topic(kind), timeout=10).topics[self.topic(kind)].partitions
        c.assign([TopicPartition(self.topic(kind), p, 0) for p in partitions])
        found, ended = [], set()
        while len(ended) < len(partitions):
            m = c.poll(10)
            assert m is not None, f"{self.topic(kind)} cannot be read"
            if m.error():
                assert m.error().name() == "_PARTITION_EOF", m.error()
                ended.add(m.partition())
            else:
                found.append(m)
        c.close()
        return found


class Output:
    def __init__(self, out, err):
        self.out, self.err = out, err

    @property
    def lines(self):
        return self.out.splitlines()


class Worker(threading.Thread):
    """Reads requests and cancels, answers as the request's prompt says:

      !silent               no answer             !fail REASON         a failed result
      !slow SECONDS TEXT    answers late          !script NAME         a script given to the worker
      anything else         its words in capitals, a chunk each when it streams

    It answers nothing for stall_s seconds from the first request on, or until go_on()."""

    def __init__(self, client, scripts=None, stall_s=0):
        super().__init__(daemon=True)
        self.client, self.scripts = client, scripts or {}
        self.requests, self.cancels, self.failure = [], [], None
        self.stopping = threading.Event()
        self.later = [] # (when, request, partition)
        self.stall_s, self.stalled_until = stall_s, None
        common = {"bootstrap.servers": client.brokers, "log_level": 0, "linger.ms": 0}
        self.chunks = Producer({**common, "enable.idempotence": True})
        self.results = Producer({**common, "transactional.id": client.prefix})
        self.results.init_transactions(30)
        self.consumer = Consumer({"bootstrap.servers": client.brokers, "group.id": client.prefix, "log_level": 0,
                                  "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 5})
        self.consumer.assign([TopicPartition(client.topic("requests"), p, 0) for p in range(PARTITIONS)] +
                             [TopicPartition(client.topic("control"), 0, 0)])
        self.start()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except BaseException as problem: # noqa: BLE001  (told by stop())
            self.failure = problem

    def step(self):
        now, done = time.time(), []
        for m in self.consumer.consume(200, timeout=0.005):
            assert not m.error(), m.error()
            _, record = DECODER.decode(m.value())
            if m.topic() == self.client.topic("control"):
                self.cancels.append(record)
            else:
                self.requests.append((m, record))
                self.later.append((now + self.delay(record["prompt"]), record, m.partition()))
        if self.stalled_until is None and self.requests:
            self.stalled_until = now + self.stall_s
        if now < (self.stalled_until or 0):
            return
        due = [x for x in self.later if x[0] <= now]
        self.later = [x for x in self.later if x[0] > now]
        for _, record, partition in due:
            done += self.answer(record, partition)
        if done:
            self.commit(done)

    def go_on(self):
        self.stalled_until = 0

    def wait_requests(self, count, timeout=60):
        deadline = time.time() + timeout
        while len(self.requests) < count:
            assert time.time() < deadline and not self.failure, f"{len(self.requests)} of {count} requests: {self.failure}"
            time.sleep(0.01)

    @staticmethod
    def delay(prompt):
        return float(prompt.split()[1]) if prompt.startswith("!slow") else 0

    def answer(self, request, partition):
        prompt = request["prompt"]
        if prompt.startswith("!silent"):
            return []
        if prompt.startswith("!fail"):
            return [self.result(request, partition, status="failed", sequences=[],
                                error={"class": "invalid", "message": prompt[6:]})]
        if prompt.startswith("!script"):
            return self.scripts[prompt.split()[1]](self, request, partition) or []
        words = [w.upper() + " " for w in prompt.split()[2 if prompt.startswith("!slow") else 0:]]
        if request["stream"]:
            self.stream(request, partition, words)
        return [self.result(request, partition, texts=["".join(words)])]

    def chunk(self, request, partition, **fields):
        record = {"job_id": request["job_id"], "attempt": 1, "sequence": 0, "seq": 0, "token_start": 0,
                  "text_start": 0, "token_ids": [], "text": "", "engine_id": "engine-a", **fields}
        self.chunks.produce(self.client.topic("chunks"), encode("GenerationChunk", record), request["job_id"],
                            partition=partition)

    def stream(self, request, partition, words, begin=0, end=None, finish="eos", **fields):
        """Chunks begin..end-1 of a stream with a word in each."""
        end = len(words) if end is None else end
        for i in range(begin, end):
            last = i == len(words) - 1
            self.chunk(request, partition, seq=i, token_start=i, text_start=len("".join(words[:i]).encode()),
                       text=words[i], token_ids=[100 + i], finish_reason=finish if last else None, **fields)
        self.chunks.flush(10)

    @staticmethod
    def result(request, partition, texts=("",), **fields):
        sequences = [{"text": t, "token_ids": [100 + i for i in range(len(t.split()))], "finish_reason": "eos"}
                     for t in texts]
        record = {"job_id": request["job_id"], "attempt": 1, "status": "completed", "sequences": sequences,
                  "usage": {"prompt_tokens": 3, "generated_tokens": sum(len(s["token_ids"]) + 1 for s in sequences)},
                  "timings": {"queue_us": 10, "total_us": 2500}, "engine_id": "engine-a", "worker": "fake", "error": None,
                  **fields}
        return record, partition

    def commit(self, done, abort=False):
        self.results.begin_transaction()
        for record, partition in done:
            self.results.produce(self.client.topic("results"), encode("GenerationResult", record), record["job_id"],
                                 partition=partition)
        if abort:
            self.results.flush(10)
            self.results.abort_transaction(30)
        else:
            self.results.commit_transaction(30)

    def stop(self):
        self.stopping.set()
        self.join(30)
        self.consumer.close()
        if self.failure:
            raise self.failure


@pytest.fixture
def bare(brokers):
    """The command without topics."""
    return Client(brokers)


@pytest.fixture
def client(brokers):
    """Topics of this test alone, made by the command itself."""
    client = Client(brokers)
    client.run("topics", "--create", "--partitions", PARTITIONS, "--replication", 1)
    yield client
    for future in client.admin.delete_topics([client.topic(kind) for kind in KINDS]).values():
        future.exception(30)


@pytest.fixture
def worker(client):
    worker = Worker(client)
    yield worker
    worker.stop()
