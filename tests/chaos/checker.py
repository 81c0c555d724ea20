# SPDX-License-Identifier: MIT
"""The checker: pure functions from complete logs to violations. It trusts nothing of the product: the
truth is what was sent (load.Sent), the results of an undisturbed engine, and what an ordinary
read_committed reader sees after recovery."""
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

FINAL = ("completed", "failed", "cancelled", "expired")
CHUNK_FIELDS = ("token_start", "text_start", "text", "token_ids", "finish_reason")
SAMPLE_SLACK_S = 0.05 # between a broker's answer and the clock read after it
RERUN_SLACK_S = 0.5


@dataclass
class Read:
    """One record. at: when its broker appended it, seconds; value: bytes of requests and dead letters,
    else the decoded record."""
    partition: int
    offset: int
    at: float
    key: str
    headers: dict
    value: Any


@dataclass
class Logs:
    """Everything read back; each list in log order per partition."""
    requests: list = field(default_factory=list)
    results: list = field(default_factory=list)
    chunks: list = field(default_factory=list)
    events: list = field(default_factory=list)
    dead: list = field(default_factory=list)
    committed: list = field(default_factory=list) # (at, partition, offset): samples while it ran
    final_committed: dict = field(default_factory=dict) # partition -> (offset, end of the log)
    zombies: list = field(default_factory=list) # (from, to): an owner may not know yet that it lost its jobs
    clocks_stepped: bool = False # workers' times of day are no evidence
    raw: dict = field(default_factory=dict) # (topic, partition) -> [(offset, bytes)] of results and chunks
    along: dict = field(default_factory=dict) # the same, of a slow reader while faults went on
    tables: dict = field(default_factory=dict)  # name -> rows, see reader.QUERIES
    rebuilt: dict = field(default_factory=dict) # the same, made from the log in an empty database

    def final_events(self):
        return [e for e in self.events if e.value["state"] in FINAL]


@dataclass
class Violation:
    rule: str
    job: str
    what: str

    def __str__(self):
        return f"{self.rule}: job {self.job}: {self.what}"


# ---- results ----

def starts_with(whole, part):
    return whole[:len(part)] == part


def check_result(sent, reference, job_id, r):
    """One job's result against what was asked for."""
    if job_id in sent.invalid or job_id in sent.poison:
        wanted = "invalid" if job_id in sent.invalid else "poison"
        if r["status"] != "failed" or r["error"]["class"] != wanted:
            yield Violation("class of failure", job_id, f"status {r['status']}, error {r['error']}, not {wanted}")
        return
    if job_id in sent.cancelled_early:
        if r["status"] != "cancelled":
            yield Violation("early cancel", job_id, f"status {r['status']}")
        return
    if r["status"] == "cancelled" and job_id in sent.cancelled_late:
        if sent.jobs[job_id].get("num_beams", 1) == 1:
            for got, full in zip(r["sequences"], reference[job_id]["sequences"]):
                if not starts_with(full["token_ids"], got["token_ids"]):
                    yield Violation("pure function", job_id, "a cancelled result is no prefix of the whole")
        return
    if r["status"] != "completed":
        yield Violation("healthy jobs complete", job_id, f"status {r['status']}: {r['error']}")
        return
    same = ("text", "token_ids", "finish_reason")
    got = [[s[f] for f in same] for s in r["sequences"]]
    full = [[s[f] for f in same] for s in reference[job_id]["sequences"]]
    if got != full:
        yield Violation("pure function", job_id, f"{got} differs from the undisturbed {full}")


def check_results(sent, logs, reference):
    seen = {}
    for read in logs.results:
        job_id = read.value["job_id"]
        if job_id in seen:
            yield Violation("one result", job_id, f"a second result, offset {read.offset} of partition {read.partition}")
        if job_id not in sent.jobs:
            yield Violation("no invention", job_id, "a result for a request never sent")
        seen.setdefault(job_id, read.value)
    for job_id in sent.jobs:
        if job_id in seen:
            yield from check_result(sent, reference, job_id, seen[job_id])
        else:
            yield Violation("no loss", job_id, "no result")


def check_dead_letters(sent, logs):
    """Undecodable records and poison: one dead letter each, with the bytes as sent. Nothing else."""
    payload = {r.key: r.value for r in logs.requests}
    wanted = dict(sent.junk)
    wanted.update({job_id: payload.get(job_id) for job_id in sent.poison})
    seen = defaultdict(list)
    for read in logs.dead:
        seen[read.key].append(read.value)
    for key, value in wanted.items():
        copies = seen.pop(key, [])
        if copies != [value]:
            yield Violation("dead letters", key, f"{len(copies)} copies, the bytes as sent: {copies[:1] == [value]}")
    for key in seen:
        yield Violation("healthy jobs are not dead-lettered", key, "a DLQ record")


# ---- streams ----

def check_stream(job_id, n, parts, result_read):
    """One sequence's chunks of all attempts against one another and the result."""
    result = result_read.value
    completed = result["status"] == "completed"
    sequence = result["sequences"][n] if n < len(result["sequences"]) else None
    by_seq = {}
    for c in (p.value for p in parts):
        first = by_seq.setdefault(c["seq"], c)
        if any(first[f] != c[f] for f in CHUNK_FIELDS) and completed:
            yield Violation("identical replays", job_id, f"chunk {c['seq']} differs between attempts {first['attempt']} and {c['attempt']}")
    if sorted(by_seq) != list(range(len(by_seq))):
        yield Violation("complete streams", job_id, f"sequence {n} has chunks {sorted(by_seq)}")
        return
    ordered = [by_seq[s] for s in sorted(by_seq)]
    text, ids = b"", []
    for c in ordered:
        if c["text_start"] != len(text) or c["token_start"] != len(ids):
            yield Violation("complete streams", job_id, f"sequence {n} chunk {c['seq']}: starts do not add up")
        text, ids = text + c["text"].encode(), ids + c["token_ids"]
    if completed and (sequence is None or text != sequence["text"].encode() or ids != sequence["token_ids"]):
        yield Violation("complete streams", job_id, f"sequence {n}: chunks give {text!r}, the result {sequence}")
    if not completed and sequence and not starts_with(ids, sequence["token_ids"]):
        yield Violation("complete streams", job_id, f"sequence {n}: a cancelled result is no prefix of its chunks")
    ends = [p.at for p in parts if p.value["finish_reason"] is not None]
    # An owner that gave the job up in order leaves chunks of the same attempt; one that streamed has tokens to show.
    own_run = any(p.value["attempt"] == result["attempt"] for p in parts) and sequence and sequence["token_ids"]
    if not ends and (completed or own_run):
        yield Violation("complete streams", job_id, f"sequence {n} has no end")
    elif ends and min(ends) > result_read.at + 0.0005 and (completed or min(p.at for p in parts) < result_read.at):
        yield Violation("chunks first", job_id, f"the result came {min(ends) - result_read.at:.3f} s before the last chunk")


def check_streams(sent, logs):
    results = {r.value["job_id"]: r for r in logs.results}
    streams = defaultdict(list)
    for read in logs.chunks:
        streams[read.value["job_id"], read.value["sequence"]].append(read)
    for (job_id, n), parts in streams.items():
        if job_id not in sent.jobs:
            yield Violation("no invention", job_id, "a chunk for a request never sent")
        elif job_id in results:
            yield from check_stream(job_id, n, parts, results[job_id])
    for job_id, read in results.items():
        if sent.jobs.get(job_id, {}).get("stream") and read.value["status"] == "completed":
            for n in range(len(read.value["sequences"])):
                if (job_id, n) not in streams:
                    yield Violation("complete streams", job_id, f"sequence {n} has no chunks at all")


def check_reruns(logs):
    """No job starts again once its result is there: no first chunk was made, and no `started` event
    written, later. Workers that were stopped, or cut off from their broker, run until they learn that
    they lost their partitions (what they publish is refused): those times are left out. Where workers'
    clocks were stepped, a first chunk's append counts instead of what its worker thought the time was."""
    result_at = {r.value["job_id"]: r.at for r in logs.results}
    starts = [(c.value["job_id"], c.value["created_at_us"] / 1e6) for c in logs.chunks if c.value["seq"] == 0]
    starts += [(e.value["job_id"], e.value["started_at_us"] / 1e6) for e in logs.events if e.value["state"] == "started"]
    if logs.clocks_stepped:
        starts = [(c.value["job_id"], c.at) for c in logs.chunks if c.value["seq"] == 0]
    for job_id, at in starts:
        done = result_at.get(job_id)
        zombie = any(since <= at <= until for since, until in logs.zombies)
        if done is not None and at > done + RERUN_SLACK_S and not zombie:
            yield Violation("no second run", job_id, f"started {at - done:.3f} s after its result")


def check_along(logs):
    """A reader that reads along, slowly, is given what stands in the log in the end: no record that goes
    away, none out of order, none left out."""
    for place in set(logs.raw) | set(logs.along):
        whole, seen = logs.raw.get(place, []), logs.along.get(place, [])
        if seen != whole:
            at = next((n for n, (a, b) in enumerate(zip(seen, whole)) if a != b), min(len(seen), len(whole)))
            yield Violation("readers along see what stands" if at < len(seen) else "readers along come to the end", f"{place[0]} {place[1]}",
                            f"record {at}: offsets {[o for o, _ in seen[at:at + 3]]}, in the log {[o for o, _ in whole[at:at + 3]]}")


# ---- events, offsets ----

def check_events(logs):
    finals = {}
    for e in (read.value for read in logs.final_events()):
        if e["job_id"] in finals:
            yield Violation("one final event", e["job_id"], f"{finals[e['job_id']]}, then {e['state']}")
        finals[e["job_id"]] = e["state"]
    for r in (read.value for read in logs.results):
        if finals.get(r["job_id"]) != r["status"]:
            yield Violation("events equal results", r["job_id"], f"event {finals.get(r['job_id'])}, result {r['status']}")


def check_offsets(logs):
    """The lag is 0 in the end, and no committed offset passed a job whose outcome was not in the log."""
    for partition, (offset, end) in logs.final_committed.items():
        if offset != end:
            yield Violation("lag returns to 0", f"partition {partition}", f"committed {offset} of {end}")
    outcome_at = {r.value["job_id"]: r.at for r in logs.results}
    outcome_at.update({r.key: r.at for r in logs.dead if r.key not in outcome_at})
    first = {}
    for r in logs.requests:
        first.setdefault((r.partition, r.key), r.offset)
    for at, partition, committed in logs.committed:
        for (p, key), offset in first.items():
            if p == partition and offset < committed and outcome_at.get(key, 0) > at + SAMPLE_SLACK_S:
                yield Violation("commit after outcome", key, f"offset {offset} was committed {outcome_at[key] - at:.3f} s before its outcome")


# ---- SQL ----

def differing(one, two):
    return sorted((Counter(one) - Counter(two)).elements(), key=str)[:2], sorted((Counter(two) - Counter(one)).elements(), key=str)[:2]


def check_sql(logs):
    """Rows are a function of the events: each final event exactly once, no more, no less."""
    finals = {e.value["job_id"]: e.value for e in logs.final_events()}
    rows = {row[0]: row for row in logs.tables["job"]}
    for job_id, e in finals.items():
        row = rows.get(job_id)
        if row is None or (row[1], row[2], row[3], row[6]) != (e["state"], e["attempt"], 1, e["worker"]):
            yield Violation("SQL equals the events", job_id, f"row {row and row[1:7]}, event {e['state']} attempt {e['attempt']} of {e['worker']}")
    for job_id in set(rows) - {e.value["job_id"] for e in logs.events}:
        yield Violation("SQL equals the events", job_id, "a row for a job without events")
    latencies = Counter(row[0] for row in logs.tables["job_latency"])
    for job_id in set(latencies) | set(finals):
        if latencies[job_id] != (job_id in finals):
            yield Violation("SQL equals the events", job_id, f"{latencies[job_id]} latency rows")
    completed = Counter(e["tenant"] for e in finals.values() if e["state"] == "completed")
    for metric in ("queue", "first_token", "total"):
        counted = Counter()
        for row in logs.tables["latency_histogram"]:
            if row[3] == metric:
                counted[row[2]] += row[5]
        if counted != completed:
            yield Violation("SQL equals the events", "-", f"the histogram of {metric} counts {dict(counted)} jobs, events {dict(completed)}")
    for name, found in logs.tables.items():
        if found != logs.rebuilt[name]:
            yield Violation("SQL can be rebuilt", "-", f"{name}: here and rebuilt differ: {differing(found, logs.rebuilt[name])}")


# ---- recovery ----

def recovery_gaps(logs, kills):
    """Seconds from each kill -9 to the next result of any partition, and to the last of the first results
    of the partitions that had work then; of the latter only where no other kill came in between."""
    results = sorted((r.at, r.partition, r.value["job_id"]) for r in logs.results)
    asked = {}
    for r in logs.requests:
        asked.setdefault(r.key, r.at)
    any_gaps, own_gaps = [], []
    for n, kill in enumerate(kills):
        later = [r for r in results if r[0] > kill]
        if not later:
            continue
        any_gaps.append(round(later[0][0] - kill, 3))
        waiting = {p for _, p, job_id in later if asked.get(job_id, kill) < kill}
        firsts = [next(at for at, p, _ in later if p == partition) for partition in waiting]
        if firsts and (n + 1 == len(kills) or max(firsts) < kills[n + 1]):
            own_gaps.append(round(max(firsts) - kill, 3))
    return any_gaps, own_gaps


def check(sent, logs, reference, with_database):
    found = [*check_results(sent, logs, reference), *check_dead_letters(sent, logs), *check_streams(sent, logs),
             *check_reruns(logs), *check_along(logs), *check_events(logs), *check_offsets(logs)]
    return found + (list(check_sql(logs)) if with_database else [])
