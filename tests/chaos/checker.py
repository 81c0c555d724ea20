# SPDX-License-Identifier: MIT
"""The checker: pure functions from complete logs to violations. It trusts nothing of the product: the
truth is what was sent (load.Sent), the reference texts of an undisturbed run, and what an ordinary
read_committed reader sees after recovery."""
from dataclasses import dataclass, field

FINAL = ("completed", "failed", "cancelled", "expired")


@dataclass
class Logs:
    """Everything read back; each list in log order per partition. at = record timestamp, seconds."""
    requests: list = field(default_factory=list) # (partition, offset, key, value)
    results: list = field(default_factory=list)  # (partition, offset, at, record)
    chunks: list = field(default_factory=list)   # (partition, offset, at, record)
    events: list = field(default_factory=list)   # (partition, offset, at, record)
    dead: list = field(default_factory=list)     # (key, value, headers)
    committed: list = field(default_factory=list) # (at, partition, offset): samples while it ran
    final_committed: dict = field(default_factory=dict) # partition -> (offset, end of the log)
    job_rows: dict = field(default_factory=dict)  # job_id -> status
    latency_rows: dict = field(default_factory=dict) # job_id -> rows


@dataclass
class Violation:
    rule: str
    job: str
    what: str

    def __str__(self):
        return f"{self.rule}: job {self.job}: {self.what}"


def check_results(sent, logs, reference):
    out, seen = [], {}
    for _, _, _, r in logs.results:
        job_id = r["job_id"]
        if job_id in seen:
            out.append(Violation("one result", job_id, "a second result"))
        if job_id not in sent.jobs:
            out.append(Violation("no invention", job_id, "a result for a request never sent"))
        seen[job_id] = r
    for job_id, request in sent.jobs.items():
        r = seen.get(job_id)
        if r is None:
            out.append(Violation("no loss", job_id, "no result"))
        elif job_id in sent.cancelled_early:
            if r["status"] != "cancelled":
                out.append(Violation("early cancel", job_id, f"status {r['status']}"))
        elif r["status"] != "completed":
            out.append(Violation("healthy jobs complete", job_id, f"status {r['status']}: {r['error']}"))
        elif job_id in reference:
            texts = [s["text"] for s in r["sequences"]]
            if texts != reference[job_id]:
                out.append(Violation("pure function", job_id, f"{texts} differs from {reference[job_id]}"))
        if r is not None and request.get("num_return_sequences", 1) != len(r["sequences"]) \
                and r["status"] == "completed":
            out.append(Violation("sequences", job_id, f"{len(r['sequences'])} sequences"))
    return out


def check_dead_letters(sent, logs):
    out, seen = [], {}
    for key, value, _ in logs.dead:
        seen.setdefault(key, []).append(value)
    for key, value in sent.junk.items():
        copies = seen.pop(key, [])
        if copies != [value]:
            out.append(Violation("dead letters", key, f"{len(copies)} copies, the bytes as sent: {copies[:1] == [value]}"))
    for key in seen:
        out.append(Violation("healthy jobs are not dead-lettered", key, "a DLQ record"))
    return out


def check_streams(sent, logs):
    """All attempts agree byte for byte where they overlap, with one another and with the result; the
    end of each sequence was written before its result."""
    out = []
    results = {r["job_id"]: (at, r) for _, _, at, r in logs.results}
    streams = {}
    for _, _, at, c in logs.chunks:
        if c["job_id"] not in sent.jobs:
            out.append(Violation("no invention", c["job_id"], "a chunk for a request never sent"))
        streams.setdefault((c["job_id"], c["sequence"]), []).append((at, c))
    for (job_id, n), parts in streams.items():
        at_result, result = results.get(job_id, (None, None))
        if result is None or result["status"] != "completed":
            continue
        sequence = result["sequences"][n]
        text, by_seq = sequence["text"].encode(), {}
        for at, c in parts:
            piece = c["text"].encode()
            if text[c["text_start"]:c["text_start"] + len(piece)] != piece:
                out.append(Violation("identical replays", job_id, f"chunk {c['seq']} of attempt {c['attempt']} is not in the result"))
            ids = sequence["token_ids"][c["token_start"]:c["token_start"] + len(c["token_ids"])]
            if ids != c["token_ids"]:
                out.append(Violation("identical replays", job_id, f"chunk {c['seq']}: token ids differ"))
            first = by_seq.setdefault(c["seq"], c)
            if any(first[f] != c[f] for f in ("token_start", "text_start", "text", "token_ids", "finish_reason")):
                out.append(Violation("identical replays", job_id, f"chunk {c['seq']} differs between attempts"))
        joined = b"".join(by_seq[s]["text"].encode() for s in sorted(by_seq))
        if joined != text or sorted(by_seq) != list(range(len(by_seq))):
            out.append(Violation("complete streams", job_id, f"sequence {n}: chunks give {joined!r}"))
        ends = [at for at, c in parts if c["finish_reason"] is not None]
        if not ends:
            out.append(Violation("complete streams", job_id, f"sequence {n} has no end"))
        elif min(ends) > at_result + 0.001:
            out.append(Violation("chunks first", job_id, "the result came before the last chunk"))
    for job_id, request in sent.jobs.items():
        result = results.get(job_id, (0, None))[1]
        if request.get("stream") and result and result["status"] == "completed" and (job_id, 0) not in streams:
            out.append(Violation("complete streams", job_id, "no chunks at all"))
    return out


def check_events(logs):
    out, finals = [], {}
    for _, _, _, e in logs.events:
        if e["state"] in FINAL:
            if e["job_id"] in finals:
                out.append(Violation("one final event", e["job_id"], "a second final event"))
            finals[e["job_id"]] = e["state"]
    for _, _, _, r in logs.results:
        if finals.get(r["job_id"]) != r["status"]:
            out.append(Violation("events equal results", r["job_id"], f"event {finals.get(r['job_id'])}, result {r['status']}"))
    return out


def check_offsets(logs):
    """A committed offset never passes a job whose outcome is not in the log yet."""
    out, outcome_at = [], {}
    for _, _, at, r in logs.results:
        outcome_at[r["job_id"]] = at
    for partition, (offset, end) in logs.final_committed.items():
        if offset != end:
            out.append(Violation("lag returns to 0", f"partition {partition}", f"committed {offset} of {end}"))
    first_at = {}
    for partition, offset, key, _ in logs.requests:
        first_at.setdefault((partition, key), offset)
    for at, partition, committed in logs.committed:
        for p, offset, key, _ in logs.requests:
            if p != partition or offset >= committed or first_at[(p, key)] != offset:
                continue
            done = outcome_at.get(key)
            if done is not None and done > at + 0.05:
                out.append(Violation("commit after outcome", key, f"offset {offset} was committed {done - at:.3f} s before its result"))
    return out


def check_sql(logs, with_database):
    if not with_database:
        return []
    out = []
    for _, _, _, r in logs.results:
        status = logs.job_rows.get(r["job_id"])
        if status != r["status"]:
            out.append(Violation("SQL equals the events", r["job_id"], f"row says {status}, result {r['status']}"))
        rows = logs.latency_rows.get(r["job_id"], 0)
        if rows != 1:
            out.append(Violation("SQL equals the events", r["job_id"], f"{rows} latency rows"))
    return out


def check(sent, logs, reference, with_database):
    return (check_results(sent, logs, reference) + check_dead_letters(sent, logs) + check_streams(sent, logs)
            + check_events(logs) + check_offsets(logs) + check_sql(logs, with_database))
