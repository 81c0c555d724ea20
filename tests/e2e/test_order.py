# SPDX-License-Identifier: MIT
"""Who goes first, and what happens when more comes than fits: priorities, tenants, bounds. One
partition each: the order of the results is the order in which the jobs ended."""
import threading
import time

import pytest

from realm import request

SLOW = {"do_sample": True, "seed": 1, "num_return_sequences": 8, "min_length": 250, "max_length": 256}
SHORT = {"max_length": 6, "min_length": 6}


def finish_order(realm, marks):
    """The marks of the jobs in the order of their results."""
    return [marks[r.value["job_id"]] for r in realm.reader.records["results"] if r.value["job_id"] in marks]


def run_queued(new_realm, jobs, **settings):
    """All jobs wait before the worker starts: a blocker keeps the engine for a second, until they are queued."""
    realm, blocker = new_realm(partitions=1), request(priority=10, num_return_sequences=8, do_sample=True, seed=1, **SHORT)
    realm.send(blocker, *jobs)
    realm.worker(engine_max_rows=8, faults=f"{blocker['job_id']}:stall:1000", **settings)
    realm.check_exactly_once()
    return realm


def test_higher_priority_goes_first(new_realm):
    jobs = [request(priority=p, **SHORT) for p in (-10, 0, 5, -3, 9, 0, 9, -10)]
    # one row a job would run all at once: eight rows each, so that one runs at a time
    for job in jobs:
        job.update(num_return_sequences=8, do_sample=True, seed=1)
    realm = run_queued(new_realm, jobs, queue_ageing_ms=60000)
    order = finish_order(realm, {j["job_id"]: j["priority"] for j in jobs})
    assert order == sorted(order, reverse=True)


def test_tenants_share_within_a_priority(new_realm):
    jobs = [request(tenant="many", do_sample=True, seed=1, num_return_sequences=8, **SHORT) for _ in range(24)]
    jobs += [request(tenant=t, do_sample=True, seed=1, num_return_sequences=8, **SHORT) for t in ("few", "one", "few")]
    realm = run_queued(new_realm, jobs)
    order = finish_order(realm, {j["job_id"]: j["tenant"] for j in jobs})
    assert {"few", "one"} <= set(order[:4]), order
    assert order[:7].count("few") == 2, order


def test_old_jobs_of_low_priority_are_not_starved(new_realm):
    """Each 5 ms of waiting is worth a level: newcomers of priority 10 pass an old one only at first."""
    realm = new_realm(partitions=1)
    low = request(priority=-10, do_sample=True, seed=1, num_return_sequences=8, **SHORT)
    realm.send(request(priority=10, **SLOW), low)
    realm.worker(engine_max_rows=8, queue_ageing_ms=5)
    high = []
    deadline = time.time() + 90
    while not realm.reader.results.get(low["job_id"]):
        assert time.time() < deadline, "the low one starves"
        if len(high) - len(realm.reader.records["results"]) < 20: # the queue is never empty
            high.append(request(priority=10, do_sample=True, seed=1, num_return_sequences=8, **SHORT))
            realm.send(high[-1])
        realm.reader.poll(0.001)
    realm.check_exactly_once()


def test_a_bounded_queue_pauses_and_goes_on(new_realm):
    """At most queue.max_jobs jobs inside, though 96 wait; all of them run. They start and end together, so
    nothing leaves the full worker for as long as it takes to pause."""
    realm = new_realm(partitions=2)
    jobs = [request(f"Sentence number {n}.", max_length=256, min_length=256) for n in range(96)]
    realm.send(*jobs)
    worker = realm.worker(queue_max_jobs=16, engine_max_rows=16, engine_threads=1, wait=False)
    seen, paused, stop = [], [], threading.Event()

    def sample():
        while not stop.wait(0.01):
            seen.append(worker.metric("pgpt_jobs_in_flight"))
            paused.append(worker.metric("pgpt_partitions_paused"))
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        realm.check_exactly_once()
    finally:
        stop.set()
        sampler.join()
    seen = [s for s in seen if s is not None]
    assert max(seen) <= 16, f"{max(seen)} jobs inside"
    assert max(seen) > 8
    assert 2 in paused and 0 in paused, "it paused, and went on"
    realm.wait_lag_zero()


@pytest.mark.release_only
@pytest.mark.parametrize("setting", [{"queue_max_jobs": 1}, {"ledger_max_ahead": 64}, {"commit_max_jobs": 1, "commit_interval_ms": 0}],
                         ids=["queue", "ahead", "commit"])
def test_smallest_bounds_lose_nothing(new_realm, setting):
    realm = new_realm(partitions=1)
    realm.send(request(**SLOW), *[request(f"Number {n}", **SHORT) for n in range(80)])
    realm.worker(**setting)
    realm.check_exactly_once()
    realm.wait_lag_zero()


def test_a_slow_job_does_not_hold_the_others_back(new_realm):
    """Results leave out of order; the committed offset waits for the slow one."""
    realm = new_realm(partitions=1)
    slow, quick = request(**SLOW), [request(f"Number {n}", **SHORT) for n in range(20)]
    realm.worker()
    realm.send(slow, *quick)
    realm.check_exactly_once()
    order = [r.value["job_id"] for r in realm.reader.records["results"]]
    assert order.index(slow["job_id"]) > 10, "quick ones went out while the slow one ran"
    realm.wait_lag_zero()
