# SPDX-License-Identifier: MIT
"""Streams: what a reader of pgpt.chunks sees is the result's text and tokens, byte for byte, in whole
characters, with borders that depend on the request alone."""
import time

import pytest

from realm import check_stream, paced, request

LONG = "In the evening we walked along the river and talked about the books that we had read in the summer."
EMOJI = "😀 «ёлка» — ☃ 漢字 🇷🇺 ﷽ naïve"
TRACE = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", b"vendor=1")]


def stream(main, prompt=LONG, headers=None, **fields):
    """Runs one streamed job; returns (result, chunks by sequence) after the byte for byte check."""
    job = request(prompt, stream=True, **fields)
    result, = main.run(job, headers=headers)
    assert result["status"] == "completed", result["error"]
    return result, check_stream(main.chunks(job["job_id"]), result)


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 11, "temperature": 1.8, "max_length": 40}],
                         ids=["greedy", "sampled"])
def test_borders_lie_after_every_interval(main, interval, options):
    result, (chunks,) = stream(main, stream_interval=interval, **options)
    sizes = [len(c["token_ids"]) for c in chunks]
    assert all(size == interval for size in sizes[:-1]) and sizes[-1] <= interval
    assert all(c["attempt"] == 1 and c["sequence"] == 0 for c in chunks)
    assert result["usage"]["generated_tokens"] >= sum(sizes)


def test_the_length_limit_ends_the_last_chunk(main):
    """max_length on a border: no empty chunk after it."""
    for length, interval in [(8, 4), (8, 1), (9, 4), (1, 1), (5, 64)]:
        result, (chunks,) = stream(main, max_length=length, min_length=length, stream_interval=interval)
        assert result["sequences"][0]["finish_reason"] == "length"
        generated = result["usage"]["generated_tokens"]
        assert generated == length
        assert all(c["token_ids"] for c in chunks[:-1])


def test_streaming_changes_nothing_in_the_result(main):
    for options in [{}, {"do_sample": True, "seed": 5, "num_return_sequences": 3}, {"stop": ["а"]}, {"num_beams": 4}]:
        plain, = main.run(request(LONG, **options))
        streamed, _ = stream(main, **options)
        assert plain["sequences"] == streamed["sequences"]


def test_characters_are_never_split(main):
    """Byte tokens: one character takes several of them. Every chunk is whole characters by itself,
    since each is a string of its own; the replacement character must not appear."""
    pieces = 0
    for seed in range(12):
        result, streams = stream(main, prompt=EMOJI, target_language="ru" if seed % 2 else "en", do_sample=True, seed=seed,
                                 temperature=2.5, max_length=60, num_return_sequences=2)
        for sequence, chunks in zip(result["sequences"], streams):
            # a token whose character is not complete yet has an empty text: characters were held back
            pieces += sum(1 for c in chunks if c["token_ids"] and not c["text"])
            assert all("\ufffd" not in c["text"] for c in chunks) or "\ufffd" in sequence["text"]
    assert pieces > 0, "no character of several tokens came up: the test shows nothing"


def test_several_sequences_each_their_own_stream(main):
    result, streams = stream(main, do_sample=True, seed=1, temperature=1.5, num_return_sequences=8, stream_interval=3)
    assert len(streams) == 8
    assert len({s["text"] for s in result["sequences"]}) > 1


def test_beams_stream_one_chunk_a_sequence_at_the_end(main):
    _, streams = stream(main, num_beams=4, num_return_sequences=3)
    assert [len(chunks) for chunks in streams] == [1, 1, 1]


def test_no_chunks_without_stream(main):
    job = request(LONG)
    main.run(job)
    main.reader.quiet(0.3)
    assert main.chunks(job["job_id"]) == []


def test_stop_strings_end_the_text_before_them(main):
    plain, = main.run(request(LONG))
    text = plain["sequences"][0]["text"]
    assert len(text) > 40
    for at, size in [(10, 5), (11, 1), (20, 12), (len(text) - 3, 3), (5, 2)]:
        stop = text[at:at + size]
        where = text.index(stop)
        for interval in (1, 4):
            result, (chunks,) = stream(main, stop=[stop, "never there"], stream_interval=interval)
            sequence = result["sequences"][0]
            assert (sequence["text"], sequence["finish_reason"]) == (text[:where], "stop")
            assert sequence["token_ids"] == plain["sequences"][0]["token_ids"][:len(sequence["token_ids"])]
            so_far = ""
            for c in chunks[:-1]:
                so_far += c["text"]
                assert text[:where].startswith(so_far), f"{so_far!r} gives away a part of {stop!r}"


def test_what_only_looks_like_a_stop_string_is_given_out_in_the_end(main):
    plain, = main.run(request(LONG))
    text = plain["sequences"][0]["text"]
    words = text.split()
    stops = [words[1] + "\u0001", text[8:14] + "#", text[-4:] + "?!"]
    result, (chunks,) = stream(main, stop=stops)
    assert result["sequences"][0]["text"] == text
    assert result["sequences"][0]["finish_reason"] == plain["sequences"][0]["finish_reason"]
    held = [c for c in chunks[:-1] if c["token_ids"] and not c["text"]]
    assert held, "nothing was held back: the test shows nothing"


def test_the_earliest_of_several_stops_wins_and_empty_texts_are_fine(main):
    plain, = main.run(request(LONG))
    text = plain["sequences"][0]["text"]
    result, _ = stream(main, stop=[text[12:15], text[0:2], text[20:22]])
    assert (result["sequences"][0]["text"], result["sequences"][0]["finish_reason"]) == ("", "stop")


def test_trace_headers_go_everywhere(main):
    job = request(LONG, stream=True, min_length=250, max_length=256, do_sample=True, num_return_sequences=8, seed=1)
    main.send(job, headers=TRACE + [("other", b"not copied")])
    main.result(job["job_id"])
    main.final_events(job["job_id"])
    reader = main.reader
    for kind in ("chunks", "results", "events"):
        reads = getattr(reader, kind)[job["job_id"]]
        assert reads and all(sorted(r.headers) == sorted(TRACE) for r in reads), kind
        assert all(r.key.decode() == job["job_id"] for r in reads)


def test_chunks_come_before_the_result_and_as_they_are_made(realm):
    """The last chunk is in the log before the result; the first one long before it, and a reader has it then."""
    realm.worker(faults=paced(8)) # two seconds for 250 steps
    job = request(LONG, stream=True, min_length=250, max_length=256, do_sample=True, num_return_sequences=8, seed=2)
    realm.send(job)
    realm.wait_chunk(job["job_id"])
    assert not realm.reader.results.get(job["job_id"]), "the first chunk came with the result"
    realm.result(job["job_id"])
    reads = realm.reader.chunks[job["job_id"]]
    result = realm.reader.results[job["job_id"]][0]
    assert max(r.at for r in reads) <= result.at
    assert min(r.at for r in reads) < result.at - 0.4
    assert all(a["created_at_us"] <= b["created_at_us"] for a, b in zip(*[iter([r.value for r in reads])] * 2))
    assert {r.partition for r in reads} == {result.partition}


def test_same_request_same_borders(main):
    """Chunk borders and bytes are a function of the request alone: whatever else is in the batch."""
    fields = {"do_sample": True, "seed": 77, "temperature": 1.3, "stream_interval": 2, "stop": ["ж"], "num_return_sequences": 2}
    _, alone = stream(main, **fields)
    twin = request(LONG, stream=True, **fields)
    main.run(twin, *[request(f"Sentence {n} beside it.", stream=n % 2 == 0) for n in range(40)])
    crowded = check_stream(main.chunks(twin["job_id"]), main.result(twin["job_id"]))
    same = ("sequence", "seq", "token_start", "text_start", "token_ids", "text", "finish_reason", "engine_id")
    assert [[{f: c[f] for f in same} for c in chunks] for chunks in alone] \
        == [[{f: c[f] for f in same} for c in chunks] for chunks in crowded]


def test_created_at_is_now(main):
    before = time.time() * 1e6
    _, (chunks,) = stream(main)
    assert all(before - 1000 <= c["created_at_us"] <= time.time() * 1e6 for c in chunks)
