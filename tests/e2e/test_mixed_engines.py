# SPDX-License-Identifier: MIT
"""Workers of one group that run different engines say so; workers that run the same do not."""
import time

MIXED = "pgpt_engine_ids_mixed"
OFTEN = "ask_engines_seldom:fail" # a look every second instead of every 15


def test_another_compute_format_in_the_group_is_noticed_and_forgotten(new_realm):
    realm = new_realm(partitions=4)
    first = realm.worker("first", engine_compute="fp32", faults=OFTEN)
    same = realm.worker("same", engine_compute="fp32", faults=OFTEN)
    time.sleep(3)
    assert [first.metric(MIXED), same.metric(MIXED)] == [0, 0]
    other = realm.worker("other", engine_compute="int8", faults=OFTEN)
    for worker in (first, other):
        worker.wait_metric(MIXED, 1)
    assert first.says("runs engine_id")
    assert other.terminate() == 0
    first.wait_metric(MIXED, 0)
