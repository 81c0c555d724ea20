# SPDX-License-Identifier: MIT
"""Workers of one group that run different engines say so; workers that run the same do not."""
import time

MIXED = "pgpt_engine_ids_mixed"


def until(worker, value, seconds=50):
    deadline = time.time() + seconds
    while time.time() < deadline and worker.metric(MIXED) != value:
        time.sleep(0.5)
    return worker.metric(MIXED)


def test_another_compute_format_in_the_group_is_noticed_and_forgotten(new_realm):
    realm = new_realm(partitions=4)
    first = realm.worker("first", engine_compute="fp32")
    same = realm.worker("same", engine_compute="fp32")
    time.sleep(20) # a look every 15 s
    assert [first.metric(MIXED), same.metric(MIXED)] == [0, 0]
    other = realm.worker("other", engine_compute="int8")
    assert until(first, 1) == 1 and until(other, 1) == 1
    assert "runs engine_id" in first.log.read_text()
    assert other.terminate() == 0
    assert until(first, 0) == 0
