# SPDX-License-Identifier: MIT
"""An answer of the group's coordinator that comes later than the client waits for it. Workers meet the
broker through a relay here, which holds what it is told to hold."""
import re
import shutil
import signal
import tempfile
import time
from types import SimpleNamespace

import pytest

from cluster import Kafka
from conftest import BUILD
from network import ANSWERS, Network, Trouble
from realm import Realm, request

PARTITIONS = 6
SESSION_MS = 6000 # long enough for the member to come back: one that is fenced is told everything anew


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


def owned(worker):
    counts = re.findall(r'component="intake" message="\d+ partitions [a-z ]+, (\d+) ', worker.log.read_text())
    return int(counts[-1]) if counts else 0


def wait_for_all_partitions(realm):
    """The first two own them all: what a third one left would else be the next one's at once, and nobody gave anything up."""
    deadline = time.time() + 60
    while sum(owned(w) for w in realm.workers[:2]) != PARTITIONS:
        assert time.time() < deadline, f"partitions are left alone: {realm.state()}"
        time.sleep(0.05)


def join_in_two_steps(realm, name):
    """A third worker takes partitions of both others, of the second one of them only when we hold its answers until the
    client gives a heartbeat up. Returns it, or None when the others were too quick for that, or the machine too slow."""
    others = realm.workers[:2]
    said = {w: len(w.log.read_text()) for w in others}

    def gave_up(worker):
        return "given up" in worker.log.read_text()[said[worker]:]
    third = realm.worker(name, wait=False, brokers=realm.fronts)
    deadline = time.time() + 60
    while not any(gave_up(w) for w in others):
        assert time.time() < deadline, f"nobody gives anything up: {realm.state()}"
        time.sleep(0.002)
    late = others[1] if gave_up(others[0]) else others[0]
    late.signal(signal.SIGSTOP)
    fenced_at = time.time() + SESSION_MS / 1000 - 1
    while not gave_up(late) and not third.says("taken over") and time.time() < fenced_at:
        time.sleep(0.005)
    met = third.says("taken over") and not gave_up(late) # the first one's: from here on its heartbeats are short
    late.signal(signal.SIGCONT)
    if not met:
        return None
    late.wait_says("given up", said[late], pause=0.005)
    held = Trouble(f"{name}-", role="intake", held=(ANSWERS,))
    realm.network.begin(held)
    third.wait_says("Timed out ConsumerGroupHeartbeatRequest")
    realm.network.lift(held) # no reset: a lost connection is followed by a full heartbeat anyway
    return third


@pytest.mark.release_only # times a rebalance
def test_an_assignment_that_comes_too_late_is_asked_for_again(relayed_realm):
    """The heartbeat's answer that brings a member its last partitions is held until the client has given the
    heartbeat up. The coordinator does not repeat an assignment to short heartbeats: the client has to ask with a full
    one, or nobody ever reads those partitions (deploy/local/librdkafka/)."""
    realm = relayed_realm
    realm.worker("first", brokers=realm.fronts)
    realm.worker("second", brokers=realm.fronts)
    met = 0
    for n in range(6): # who gives up first is up to the machine
        wait_for_all_partitions(realm)
        third = join_in_two_steps(realm, f"third{n}")
        met += third is not None
        realm.results([realm.send(request(f"Sentence {i}."), partition=i % PARTITIONS) for i in range(12)])
        assert realm.workers[-1].terminate() == 0
        if met == 2:
            break
    assert met, "never met"
    realm.results([realm.send(request("The end."), partition=i) for i in range(PARTITIONS)])
