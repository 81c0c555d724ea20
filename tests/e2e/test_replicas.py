# SPDX-License-Identifier: MIT
"""Several workers of one group: they share, come, go and die, and no job is lost or doubled."""
import threading
import time
from collections import Counter

import pytest

from realm import check_stream, paced, request

# streamed; with PACE a second of work for a batch, whatever the machine: what is done to a worker meets jobs that run
PACE = paced(10)
LONG = {"stream": True, "do_sample": True, "num_return_sequences": 4, "min_length": 100, "max_length": 110}


def work(count, **fields):
    return [request(f"This is sentence number {n}.", **{**LONG, "seed": n, "stream_interval": 1 + n % 5, **fields})
            for n in range(count)]


def check_streams(realm, results):
    """Every stream, replays included, is its result byte for byte."""
    for job_id, result in results.items():
        check_stream(realm.chunks(job_id), result)


def check_pure(results, sent, generate):
    """The same bytes as an undisturbed run."""
    for reference in generate(list(sent.values())):
        assert results[reference["job_id"]]["sequences"] == [
            {**s, "score": pytest.approx(s["score"], rel=1e-6, abs=1e-6)} for s in reference["sequences"]]


def doubles(realm):
    """Chunks that came more than once: (job, sequence, seq)."""
    seen = Counter((c.value["job_id"], c.value["sequence"], c.value["seq"]) for c in realm.reader.records["chunks"])
    return [key for key, n in seen.items() if n > 1]


class Commits:
    """What any operator sees while it runs: the group's committed offsets, sampled."""

    def __init__(self, realm):
        self.realm, self.samples, self.stop = realm, [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.wait(0.2):
            committed, by = self.realm.committed(), time.time()
            self.samples += [(by, partition, offset) for partition, offset in committed.items()]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def check(self):
        """No committed offset had passed a job whose outcome was not written yet, and none went back."""
        written = {}
        for job_id in self.realm.sent:
            event = self.realm.final_events(job_id)[0]
            written[event["source_partition"], event["source_offset"]] = self.realm.reader.results[job_id][0].at
        last = Counter()
        for at, partition, offset in self.samples:
            assert offset >= last[partition], "a committed offset went back"
            last[partition] = offset
            for (p, o), result_at in written.items():
                assert p != partition or o >= offset or result_at <= at + 0.05, \
                    f"offset {o} was committed {result_at - at:.3f} s before its result was written"
        assert any(offset > 0 for _, _, offset in self.samples)


def test_two_workers_share_the_load(new_realm, generate):
    realm = new_realm(partitions=4)
    for worker in [realm.worker("one"), realm.worker("two")]:
        worker.wait_metric("pgpt_partitions_assigned", 2)
    realm.send(*work(40))
    results = realm.check_exactly_once()
    shares = Counter(r["worker"] for r in results.values())
    assert set(shares) == {"one", "two"} and min(shares.values()) >= 8, shares
    assert len({r["engine_id"] for r in results.values()}) == 1
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)


def test_a_worker_joins_while_another_runs(new_realm, generate):
    realm = new_realm(partitions=4)
    realm.worker("one")
    realm.send(*work(40))
    realm.worker("two")
    realm.send(*work(30))
    results = realm.check_exactly_once()
    assert {r["worker"] for r in results.values()} == {"one", "two"}
    assert not realm.reader.records["dlq"]
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)
    realm.wait_lag_zero()


def test_sigterm_drains_and_hands_nothing_over_twice(new_realm, generate):
    realm = new_realm(partitions=4)
    first = realm.worker("first", faults=PACE, queue_max_jobs=16)
    realm.worker("second")
    first.wait_metric("pgpt_partitions_assigned", 2)
    realm.send(*work(100)) # more than it has begun when it is told to end
    realm.reader.until(lambda: any(r.value["worker"] == "first" for r in realm.reader.records["results"]), 60, realm.state)
    assert first.terminate(60) == 0
    results = realm.check_exactly_once()
    assert {r["worker"] for r in results.values()} == {"first", "second"}
    assert {r["attempt"] for r in results.values()} == {1}, "a drain is no death"
    assert doubles(realm) == [], "a job ran twice"
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)
    realm.wait_lag_zero()


def test_the_last_worker_drains_and_its_successor_goes_on(new_realm):
    """A rolling restart of one: what was queued is handed back, what ran is finished."""
    realm = new_realm(partitions=2)
    worker = realm.worker("w", faults=PACE, queue_max_jobs=16)
    realm.send(*work(64))
    realm.reader.until(lambda: len(realm.reader.records["results"]) >= 3, 60, realm.state)
    assert worker.terminate(60) == 0
    realm.reader.quiet(0.5)
    done = len(realm.reader.records["results"])
    assert done < 64, "everything was finished before the drain: the test shows nothing"
    worker.env.pop("PGPT_FAULT")
    worker.start()
    results = realm.check_exactly_once()
    assert {r["attempt"] for r in results.values()} == {1} and doubles(realm) == []
    realm.wait_lag_zero()


@pytest.mark.release_only
def test_a_drain_without_time_gives_up_what_runs(new_realm, generate):
    """No grace: exit 0 all the same, the running jobs run again elsewhere, once in the end."""
    realm = new_realm(partitions=2)
    worker = realm.worker("hasty", faults=paced(50), worker_drain_ms=0)
    realm.send(*work(20))
    realm.reader.until(lambda: realm.reader.records["chunks"], 60, realm.state)
    assert worker.terminate(60) == 0
    realm.reader.quiet(0.5)
    assert len(realm.reader.records["results"]) < 20, "it finished what ran"
    realm.worker("next")
    results = realm.check_exactly_once()
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)


def test_kill_9_while_others_run(new_realm, generate):
    realm = new_realm(partitions=4)
    victim = realm.worker("victim", faults=PACE)
    realm.worker("survivor")
    victim.wait_metric("pgpt_partitions_assigned", 2)
    with Commits(realm) as commits:
        realm.send(*work(60))
        realm.reader.until(lambda: any(r.value["worker"] == "victim" for r in realm.reader.records["results"]), 60, realm.state)
        victim.kill()
        killed = time.time()
        results = realm.check_exactly_once()
    assert not realm.reader.records["dlq"], "a healthy job was dead-lettered"
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)
    again = [r for r in results.values() if r["attempt"] > 1]
    assert again and all(r["worker"] == "survivor" for r in again), "nothing ran at the kill: the test shows nothing"
    first_again = min(realm.reader.results[r["job_id"]][0].at for r in again)
    assert first_again - killed < 30, f"{first_again - killed:.1f} s from the kill to the first job of the dead"
    realm.wait_lag_zero()
    commits.check()


def test_a_killed_workers_successor_runs_only_what_was_not_finished(new_realm):
    """One partition, a slow job at its head: those finished behind it are in the commit's metadata."""
    realm = new_realm(partitions=1)
    worker = realm.worker("w", faults=paced(20))
    head = request(stream=True, do_sample=True, seed=1, num_return_sequences=8, min_length=250, max_length=256)
    quick = [request(f"Number {n}", stream=True, max_length=6, min_length=6) for n in range(20)]
    realm.send(*[dict(head, job_id=request()["job_id"]) for _ in range(4)], *quick)
    ids = {q["job_id"] for q in quick}
    realm.reader.until(lambda: sum(i in realm.reader.results for i in ids) >= 10, 60, realm.state)
    worker.kill()
    realm.reader.quiet(0.3)
    finished = set(realm.reader.results)
    assert realm.committed()[0] == 0, "the head of the partition was finished: the test shows nothing"
    before = {i: len(realm.chunks(i)) for i in finished}
    realm.worker("successor")
    results = realm.check_exactly_once()
    assert {i: len(realm.chunks(i)) for i in finished} == before, "a finished job ran again"
    check_streams(realm, results)
    realm.wait_lag_zero()


def test_a_stream_is_seamless_across_a_kill(new_realm):
    """A reader that drops what it has, by sequence and text_start, sees one unbroken text."""
    realm = new_realm(partitions=1)
    worker = realm.worker("w", faults=PACE)
    jobs = work(6, num_return_sequences=8, min_length=250, max_length=256)
    realm.send(*jobs)
    realm.wait_chunk(jobs[0]["job_id"])
    worker.kill()
    realm.worker("successor")
    results = realm.check_exactly_once()
    repeated = doubles(realm)
    assert repeated, "nothing was streamed twice: the test shows nothing"
    for job in jobs:
        have = Counter()
        text = {}
        for c in realm.chunks(job["job_id"]): # in the order of the log
            n, start, piece = c["sequence"], c["text_start"], c["text"].encode()
            if start + len(piece) <= have[n]:
                continue
            assert start <= have[n], "a gap"
            text[n] = text.get(n, b"") + piece[have[n] - start:]
            have[n] = start + len(piece)
        assert [text.get(n, b"").decode() for n in range(8)] == [s["text"] for s in results[job["job_id"]]["sequences"]]


@pytest.mark.release_only
def test_days_of_kills_dead_letter_nobody(new_realm, generate):
    """Four kills under load, each after some progress: what one transaction holds, 16 jobs at most."""
    realm = new_realm(partitions=2)
    jobs = work(80, num_return_sequences=2)
    realm.send(*jobs)
    for n in range(4):
        worker = realm.worker(f"w{n}", queue_max_jobs=16, faults="committed:stall:600000@1", wait=False)
        worker.wait_says("stalls at committed")
        worker.kill()
    realm.worker("last")
    results = realm.check_exactly_once()
    assert not realm.reader.records["dlq"], "a healthy job was dead-lettered"
    assert len({r["worker"] for r in results.values()}) == 5
    check_streams(realm, results)
    check_pure(results, realm.sent, generate)


@pytest.mark.parametrize("least", [100000, 0])
def test_duplicates_get_one_result(least, new_realm):
    """Sent again while it runs, after its result, and after a restart: one run, one result; whether
    the successor reads the whole index, or only what lies within its window."""
    realm = new_realm(partitions=2)
    worker = realm.worker("w")
    jobs = work(5)
    for _ in range(3):
        realm.send(*jobs)
    realm.results(realm.sent)
    realm.send(*jobs)
    realm.wait_lag_zero()
    worker.wait_metric('pgpt_jobs_total{outcome="duplicate"}', 15)
    assert worker.terminate() == 0
    worker = realm.worker("next", duplicate_min_jobs=least)
    realm.send(*jobs)
    realm.wait_lag_zero()
    worker.wait_metric('pgpt_jobs_total{outcome="duplicate"}', 5) # else the window was not rebuilt
    realm.check_exactly_once()
    assert doubles(realm) == []


def test_uncommitted_readers_aside_the_log_holds_each_result_once(new_realm):
    realm = new_realm(partitions=2)
    realm.worker("w")
    realm.send(*work(10))
    realm.check_exactly_once()
    everything = realm.new_reader("read_uncommitted")
    everything.quiet(1.0)
    assert {i: len(r) for i, r in everything.results.items()} == {i: 1 for i in realm.sent}, "no faults, no aborts"
