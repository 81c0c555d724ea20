# SPDX-License-Identifier: MIT
"""Transactions that the brokers themselves forgot: their coordinator has ended them (or knows nothing of
them), but a partition never got the marker, so that read_committed readers stop there for ever; or, when the
same producer commits in that partition again, are given what was aborted. No client can write such a marker; an
operator does by kafka-transactions.sh, and so does this. The coordinator says so in its log when it
gives a marker up (Kafka 4.3.1, a partition without a live replica while the coordinator starts)."""
import subprocess
import time

import load # noqa: F401  (puts cluster on the path)
from cluster import LOCAL

TOOL = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-cp", f"{LOCAL}/kafka/lib/*", "org.apache.kafka.tools.TransactionsCommand"]
UNDER_WAY = ("Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence")
LONGEST_S = 12 # past transaction.timeout.ms of the workers here, and the brokers' look at it


def ask(bootstrap, *command):
    """The table that the tool prints: a dict a row, by the names in its head."""
    out = subprocess.run([*TOOL, "--bootstrap-server", bootstrap, *command], capture_output=True, text=True, check=True,
                         timeout=120).stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("\t")] for line in out if "\t" in line]
    return [dict(zip(rows[0], row)) for row in rows[1:]]


def given_up(kafka):
    """How often the brokers say that they wrote no marker."""
    return sum(broker.log.read_text(errors="replace").count("likely deleted already and hence can be skipped")
               for broker in kafka.brokers)


def open_in_logs(kafka):
    """(topic, partition, start offset, producer) of every transaction without an end in a partition's log."""
    return {(row["Topic"], row["Partition"], row["StartOffset"], row["ProducerId"]) for broker in kafka.brokers
            for row in ask(kafka.bootstrap, "find-hanging", "--broker-id", str(broker.node), "--max-transaction-timeout", "0")}


def find(kafka):
    """(topic, partition, start offset) of each transaction that is open in a log and nowhere else, and has been for longer
    than any may be."""
    before = open_in_logs(kafka)
    if before:
        time.sleep(LONGEST_S)
    stuck = before & open_in_logs(kafka) if before else set()
    under_way = {row["ProducerId"] for row in ask(kafka.bootstrap, "list") if row["TransactionState"] in UNDER_WAY}
    return sorted(place[:3] for place in stuck if place[3] not in under_way)


def abort(kafka, place):
    topic, partition, start = place
    subprocess.run([*TOOL, "--bootstrap-server", kafka.bootstrap, "abort", "--topic", topic, "--partition", partition,
                    "--start-offset", start], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
