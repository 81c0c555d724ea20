# SPDX-License-Identifier: MIT
"""Workers that are killed one upon the other while much waits: from the second death on all that they may have read is
suspect, and none of it may wait for the one before it to be committed."""
import time

import pytest

from realm import request

BACKLOG, COMMIT_S, START_S = 400, 0.25, 3


def kill_in_first_transaction(realm, name):
    """A worker that has taken over everything and is about to commit what it made: nothing of it ever counts."""
    worker = realm.worker(name, faults="send_offsets:stall:600000", wait=False)
    worker.wait_says("4 owned")
    worker.wait_says("stalls at send_offsets")
    worker.kill()


@pytest.mark.release_only # times what is left
def test_a_backlog_of_suspects_is_done_in_groups(new_realm):
    """Three kill -9 with hundreds of jobs waiting, each transaction takes a quarter of a second: so much for each job where
    they run one at a time, 32 times at most where a death fell into a group."""
    realm = new_realm(partitions=4, database=False)
    realm.send(*(request(f"This is sentence number {n}.", max_length=8) for n in range(BACKLOG)))
    for life in range(3):
        kill_in_first_transaction(realm, f"life-{life}")
    realm.reader.quiet(1.0)
    results = realm.reader.results
    assert not results
    since = time.time()
    realm.worker("survivor", faults=f"send_offsets:stall:{COMMIT_S * 1000:.0f}", wait=False)
    realm.reader.until(lambda: len(results) >= BACKLOG, 200, realm.state)
    took = time.time() - since
    found = realm.check_exactly_once()
    assert not realm.reader.records["dlq"]
    assert all(r["attempt"] == 4 for r in found.values()), "they were not suspect of three deaths"
    realm.wait_lag_zero()
    print(f"{BACKLOG} jobs took {took:.1f} s")
    assert took < 0.4 * BACKLOG * COMMIT_S + START_S, f"{BACKLOG} jobs took {took:.1f} s"
