# SPDX-License-Identifier: MIT
"""Workers that are killed one upon the other while much waits: from the second death on all that they may have read is
suspect, and none of it may wait for the one before it to be committed."""
import time

import pytest

from realm import request

BACKLOG, COMMIT_S, START_S = 500, 0.25, 3


@pytest.mark.release_only # times what is left
def test_a_backlog_of_suspects_is_done_in_groups(new_realm):
    """Three kill -9 with hundreds of jobs waiting, each transaction takes a quarter of a second: so much for each job where
    they run one at a time, 32 times at most where a death fell into a group."""
    realm = new_realm(partitions=4, database=False)
    realm.send(*(request(f"This is sentence number {n}.", max_length=8) for n in range(BACKLOG)))
    results = realm.reader.results
    for life in range(4):
        since, wanted = time.time(), len(results) + 1 if life < 3 else BACKLOG
        worker = realm.worker(f"life-{life}", faults=f"send_offsets:stall:{COMMIT_S * 1000:.0f}", wait=False)
        realm.reader.until(lambda: len(results) >= wanted, 200, realm.state)
        print(f"life {life}: {len(results)} results after {time.time() - since:.1f} s")
        if life < 3:
            worker.kill()
            realm.reader.quiet(1.0) # what it had committed
            left = BACKLOG - len(results)
    took = time.time() - since
    found = realm.check_exactly_once()
    assert not realm.reader.records["dlq"]
    assert left > 40, "too few were left to show anything"
    # a worker may have died before it had taken over all partitions
    assert sum(r["attempt"] >= 3 for r in found.values()) >= left, "they were not suspect of two deaths"
    realm.wait_lag_zero()
    assert took < 0.6 * left * COMMIT_S + START_S, f"{left} jobs took {took:.1f} s"
