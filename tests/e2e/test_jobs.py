# SPDX-License-Identifier: MIT
"""The main job: requests in, translations out, with every option of the contract."""
import re
import struct
import time
import uuid

import pytest

from realm import request

ENGLISH = ["The weather is fine today.", "Where is the nearest station?", "I have never seen the sea.",
           "She reads two books a week.", "Please close the door quietly.", "He said that he would come tomorrow."]
RUSSIAN = ["Сегодня хорошая погода.", "Где ближайшая станция?", "Я никогда не видел моря.",
           "Она читает две книги в неделю.", "Закройте, пожалуйста, дверь.", "Он сказал, что придёт завтра."]


def texts(result):
    return [s["text"] for s in result["sequences"]]


def same_outcome(result, reference):
    """The wire's result against the engine's: sequences with all their fields, and the counts."""
    assert len(result["sequences"]) == len(reference["sequences"])
    for got, expected in zip(result["sequences"], reference["sequences"]):
        assert (got["text"], got["token_ids"], got["finish_reason"]) \
            == (expected["text"], expected["token_ids"], expected["finish_reason"])
        assert got["score"] == pytest.approx(expected["score"], rel=1e-6, abs=1e-6)
    assert result["usage"] == reference["usage"]


def test_translates_both_languages_as_the_engine_alone(main, generate):
    jobs = [request(t, target_language="ru", metadata={"n": str(n), "ключ": "значение"}) for n, t in enumerate(ENGLISH)]
    jobs += [request(t, target_language="en") for t in RUSSIAN]
    results = main.run(*jobs)
    for job, result, reference in zip(jobs, results, generate(jobs)):
        assert result["status"] == "completed" and result["error"] is None
        letters = "[а-яё]" if job["target_language"] == "ru" else "[a-z]"
        assert re.search(letters, result["sequences"][0]["text"].lower()), texts(result)
        same_outcome(result, reference)
        assert result["metadata"] == job.get("metadata", {})
        assert result["attempt"] == 1
        assert (result["model"], result["worker"]) == ("prometheus-mini", "main-worker")
        assert result["engine_id"] and result["model_version"]


def test_keys_partitions_and_timings(main):
    jobs = [request(t) for t in ENGLISH]
    before = time.time() * 1e6
    results = main.run(*jobs)
    after = time.time() * 1e6
    for job, result in zip(jobs, results):
        read = main.reader.results[job["job_id"]][0]
        final, = main.final_events(job["job_id"])
        event_read = [e for e in main.reader.events[job["job_id"]] if e.value is final][0]
        assert read.key.decode() == event_read.key.decode() == job["job_id"]
        assert read.partition == event_read.partition == final["source_partition"]
        t = result["timings"]
        assert all(v >= 0 for v in t.values())
        assert 0 < t["encode_us"] <= t["first_token_us"] <= t["encode_us"] + t["decode_us"] <= t["total_us"]
        assert t["queue_us"] + t["first_token_us"] <= t["total_us"] <= after - before + 2000
        assert t["batch_size_mean"] >= 1
        assert final["timings"] == t and final["usage"] == result["usage"]
        assert before - 2000 <= final["accepted_at_us"] <= final["started_at_us"] <= final["at_us"] <= after
        eos = result["sequences"][0]["finish_reason"] == "eos"
        assert result["usage"]["generated_tokens"] == len(result["sequences"][0]["token_ids"]) + eos


GREEDY = [{}, {"max_length": 5}, {"min_length": 30, "max_length": 40}, {"repetition_penalty": 1.7},
          {"author": "author_3"}, {"author": "author_MagistrTheOne"}, {"target_language": ""},
          {"prompt": "", "source_tokens": [5, 445, 665, 2342, 568, 3], "target_language": ""},
          {"max_length": 1}, {"prompt": "Ничего не переводи.\n\tДаже это! \u00a0«» — 😀", "target_language": "en"}]
BEAMS = [{"num_beams": 4}, {"num_beams": 8, "num_return_sequences": 8},
         {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True},
         {"num_beams": 3, "length_penalty": -1.5}, {"num_beams": 2, "repetition_penalty": 1.3, "min_length": 15}]
SAMPLED = [{"do_sample": True}, {"do_sample": True, "seed": 0}, {"do_sample": True, "seed": -(2 ** 63)},
           {"do_sample": True, "seed": 7, "temperature": 0.4}, {"do_sample": True, "seed": 7, "temperature": 3.0, "top_k": 20},
           {"do_sample": True, "seed": 7, "top_p": 0.6}, {"do_sample": True, "seed": 7, "num_return_sequences": 8},
           {"do_sample": True, "seed": 9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2, "min_length": 12}]


def test_every_option_reaches_the_engine(main, generate):
    """Batched over the wire with one another, equal to the engine's run of each alone."""
    jobs = [request(**{"prompt": "I would like to buy a ticket to the city.", **options}) for options in GREEDY + BEAMS + SAMPLED]
    for job, result, reference in zip(jobs, main.run(*jobs), generate(jobs)):
        assert result["status"] == "completed", result["error"]
        same_outcome(result, reference)
        assert len(result["sequences"]) == job.get("num_return_sequences", 1)
        for s in result["sequences"]:
            generated = len(s["token_ids"]) + (s["finish_reason"] == "eos")
            assert job.get("min_length", 0) <= generated <= job.get("max_length", 128)
            assert s["finish_reason"] in ("eos", "length")


def test_options_have_their_effect(main):
    """What each option means, seen without the engine's own word for it."""
    prompt = "I would like to buy a ticket to the city."

    def text(**options):
        return texts(main.run(request(prompt, **options))[0])
    greedy = text()
    assert text(do_sample=True, seed=3, temperature=2.0) == text(do_sample=True, seed=3, temperature=2.0)
    assert text(do_sample=True, seed=3, temperature=2.0) != text(do_sample=True, seed=4, temperature=2.0)
    assert text(do_sample=True, seed=3, top_k=1) == greedy
    assert text(do_sample=True, seed=3, top_p=1e-6) == greedy
    assert len(set(text(do_sample=True, seed=3, temperature=1.5, num_return_sequences=8))) > 1
    plain, *authors = main.run(*[request(prompt, author=a) for a in ("", "author_0", "author_1", "author_MagistrTheOne")])
    assert len({r["sequences"][0]["score"] for r in [plain, *authors]}) == 4
    assert [r["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"] for r in authors] == [1, 1, 1]
    languages = main.run(*[request("2025", target_language=t) for t in ("en", "ru", "")])
    assert len({r["sequences"][0]["score"] for r in languages}) == 3
    beams = main.run(request(prompt, num_beams=6, num_return_sequences=6))[0]["sequences"]
    assert [s["score"] for s in beams] == sorted((s["score"] for s in beams), reverse=True)
    assert len({s["text"] for s in beams}) > 1


def test_the_absent_seed_is_the_uuids_first_bytes(main):
    job_id = str(uuid.uuid4())
    seed, = struct.unpack(">q", uuid.UUID(job_id).bytes[:8])
    sampled = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3}
    absent, explicit = main.run(request(job_id=job_id, **sampled), request(seed=seed, **sampled))
    assert texts(absent) == texts(explicit)


def test_agrees_with_hugging_face(main, golden):
    """Greedy, beam and repetition-penalty ids of the first golden cases, by tokens and by prompt."""
    def control(name):
        return name.strip("<>")
    jobs, expected = [], []
    for case in golden[:40]:
        wanted = [("greedy_ids", {}), ("beam4_ids", {"num_beams": 4, "early_stopping": True}),
                  ("greedy_rep1.3_ids", {"repetition_penalty": 1.3})]
        for key, options in wanted:
            jobs.append(request("", target_language="", source_tokens=case["input_ids"], **options))
            expected.append(case[key])
        jobs.append(request(case["prompt"], target_language=control(case["target_language"]),
                            author=control(case["author"] or "")))
        expected.append(case["greedy_ids"])
    for job, result, ids in zip(jobs, main.run(*jobs), expected):
        got = result["sequences"][0]["token_ids"]
        wanted = [i for i in ids[1:] if i not in (0, 3)]
        assert got == wanted, (job, result["sequences"][0]["text"])


def test_uppercase_job_ids_and_metadata_come_back_as_written(main):
    job = request(job_id=str(uuid.uuid4()).upper(), metadata={"k" * 64: "v" * 1024, "": "", "е": "ё"})
    result, = main.run(job)
    assert result["job_id"] == job["job_id"] and result["metadata"] == job["metadata"]


def test_two_hundred_mixed_jobs_each_one_result(new_realm, generate):
    """Load on a fresh group: everything that came before the worker did is processed, exactly once."""
    realm = new_realm(partitions=3)
    mixed = [dict(GREEDY[0]), {"max_length": 9}, {"do_sample": True, "seed": 5, "num_return_sequences": 4},
             {"num_beams": 4}, {"stream": True}]
    jobs = [request((ENGLISH + RUSSIAN)[n % 12], **mixed[n % 5]) for n in range(200)]
    realm.send(*jobs)
    realm.worker()
    results = realm.check_exactly_once()
    for job, reference in zip(jobs, generate(jobs)):
        same_outcome(results[job["job_id"]], reference)
    realm.wait_lag_zero()
