# SPDX-License-Identifier: MIT
"""An answer of the group's coordinator that comes later than the client waits for it. Workers meet the
broker through a relay here, which holds what it is told to hold."""
import shutil
import tempfile
import time
from types import SimpleNamespace

import pytest

from cluster import Kafka
from conftest import BUILD, SESSION_MS
from network import ANSWERS, Network, Trouble
from realm import Realm, request

PARTITIONS = 6
HEARTBEAT_MS = SESSION_MS // 5 # the group's interval, and how long the client waits for an answer


@pytest.fixture
def relayed_realm(request):
    """A realm with a broker and a relay of its own; without a database."""
    directory, network = tempfile.mkdtemp(prefix="e2e-late-", dir=BUILD), Network()
    kafka = Kafka(directory, session_ms=SESSION_MS, front=network.front)
    kafka.start()
    realm = Realm(SimpleNamespace(kafka=kafka, build=BUILD, directory=directory), "late", PARTITIONS, database=False)
    realm.network, realm.fronts = network, kafka.fronts
    yield realm
    realm.close()
    kafka.stop()
    network.close()
    if not getattr(request.node, "failed_call", False):
        shutil.rmtree(directory, ignore_errors=True)


def wait_for_line(worker, text, since, timeout=20):
    deadline = time.time() + timeout
    while text not in worker.log.read_text()[since:]:
        assert time.time() < deadline and worker.alive, f"{worker.name} does not say {text!r}: {worker.tail()}"
        time.sleep(0.005)


@pytest.mark.release_only # times a rebalance
def test_an_assignment_that_comes_too_late_is_asked_for_again(relayed_realm):
    """The second worker is a member without partitions; the first gives it half of its own. The heartbeat's
    answer that brings them is held until the client has given that heartbeat up. The coordinator does not
    repeat an assignment to short heartbeats: the client has to ask with a full one, or nobody ever reads
    those partitions (deploy/local/librdkafka/)."""
    realm = relayed_realm
    first = realm.worker("first", brokers=realm.fronts)
    for n in range(3): # whether it is that answer which is held depends on the moment
        name = f"joins{n}"
        said = len(first.log.read_text())
        second = realm.worker(name, wait=False, brokers=realm.fronts)
        wait_for_line(first, "given up", said, 30)
        held = Trouble(f"{name}-", role="intake", held=(ANSWERS,))
        realm.network.begin(held)
        time.sleep(4 * HEARTBEAT_MS / 1000)
        realm.network.lift(held, reset=True)
        realm.results([realm.send(request(f"Sentence {i}."), partition=i % PARTITIONS) for i in range(12)], 20)
        second.wait_ready(20)
        assert second.terminate() == 0
        realm.results([realm.send(request("The end."), partition=i) for i in range(PARTITIONS)], 20)
