# SPDX-License-Identifier: MIT
"""Bad input of every range ends as a failed result that names the field, its value and its range;
the edges of every range are accepted. One table for all fields."""
import math
import time

import pytest

from realm import request

VOCABULARY, POSITIONS = 3000, 256
LONG_PROMPT = "word " * 400

# fields of the request; what the message must hold beside the field's name: the value and the range
BAD = {
    "prompt_empty": ({"prompt": ""}, "prompt", ["empty", "source_tokens"]),
    "prompt_long": ({"prompt": LONG_PROMPT}, "prompt", [f"1..{POSITIONS}"]),
    "source_tokens_empty": ({"source_tokens": []}, "source_tokens", ["0", f"1..{POSITIONS}"]),
    "source_tokens_many": ({"source_tokens": [5] * 257}, "source_tokens", ["257", f"1..{POSITIONS}"]),
    "source_tokens_high": ({"source_tokens": [5, VOCABULARY, 3]}, "source_tokens", ["3000", "0..2999"]),
    "source_tokens_negative": ({"source_tokens": [-1]}, "source_tokens", ["-1", "0..2999"]),
    "target_language_unknown": ({"target_language": "xx"}, "target_language", ["xx", "en"]),
    "target_language_brackets": ({"target_language": ">>en<<"}, "target_language", [">>en<<"]),
    "target_language_author": ({"target_language": "author_1"}, "target_language", ["author_1"]),
    "author_unknown": ({"author": "author_10"}, "author", ["author_10"]),
    "author_language": ({"author": "en"}, "author", ["en"]),
    "max_length_0": ({"max_length": 0}, "max_length", ["0", "1..256"]),
    "max_length_negative": ({"max_length": -5}, "max_length", ["-5", "1..256"]),
    "max_length_high": ({"max_length": 257}, "max_length", ["257", "1..256"]),
    "max_length_int_max": ({"max_length": 2 ** 31 - 1}, "max_length", ["2147483647", "1..256"]),
    "min_length_negative": ({"min_length": -1}, "min_length", ["-1", "0..128"]),
    "min_length_above_max": ({"min_length": 9, "max_length": 5}, "min_length", ["9", "0..5"]),
    "temperature_0": ({"temperature": 0.0}, "temperature", ["0", "> 0..100"]),
    "temperature_negative": ({"temperature": -1.0, "do_sample": True}, "temperature", ["-1", "> 0..100"]),
    "temperature_high": ({"temperature": 100.5}, "temperature", ["100.5", "> 0..100"]),
    "temperature_nan": ({"temperature": math.nan}, "temperature", ["nan", "> 0..100"]),
    "temperature_inf": ({"temperature": math.inf}, "temperature", ["inf", "> 0..100"]),
    "top_k_negative": ({"top_k": -1}, "top_k", ["-1", f"0..{VOCABULARY}"]),
    "top_k_high": ({"top_k": VOCABULARY + 1}, "top_k", ["3001", f"0..{VOCABULARY}"]),
    "top_p_0": ({"top_p": 0.0}, "top_p", ["0", "> 0..1"]),
    "top_p_high": ({"top_p": 1.5}, "top_p", ["1.5", "> 0..1"]),
    "top_p_nan": ({"top_p": math.nan}, "top_p", ["nan", "> 0..1"]),
    "repetition_penalty_0": ({"repetition_penalty": 0.0}, "repetition_penalty", ["0", "> 0..10"]),
    "repetition_penalty_high": ({"repetition_penalty": 10.5}, "repetition_penalty", ["10.5", "> 0..10"]),
    "length_penalty_low": ({"length_penalty": -10.5}, "length_penalty", ["-10.5", "-10..10"]),
    "length_penalty_high": ({"length_penalty": 11.0}, "length_penalty", ["11", "-10..10"]),
    "length_penalty_nan": ({"length_penalty": math.nan}, "length_penalty", ["nan", "-10..10"]),
    "num_beams_0": ({"num_beams": 0}, "num_beams", ["0", "1..8"]),
    "num_beams_high": ({"num_beams": 9}, "num_beams", ["9", "1..8"]),
    "num_return_sequences_0": ({"num_return_sequences": 0}, "num_return_sequences", ["0", "1..8"]),
    "num_return_sequences_high": ({"num_return_sequences": 9, "do_sample": True}, "num_return_sequences", ["9", "1..8"]),
    "num_return_sequences_greedy": ({"num_return_sequences": 2}, "num_return_sequences", ["2", "do_sample", "num_beams"]),
    "num_return_sequences_beams": ({"num_return_sequences": 5, "num_beams": 4}, "num_return_sequences", ["5", "1..4"]),
    "do_sample_beams": ({"do_sample": True, "num_beams": 2}, "do_sample", ["num_beams", "2"]),
    "stop_many": ({"stop": ["x"] * 9}, "stop", ["9", "0..8"]),
    "stop_long": ({"stop": ["x" * 65]}, "stop", ["xxx", "65", "64"]),
    "stop_empty": ({"stop": ["a", ""]}, "stop", ["[1]", "1..64"]),
    "stream_interval_0": ({"stream_interval": 0}, "stream_interval", ["0", "1..64"]),
    "stream_interval_high": ({"stream_interval": 65}, "stream_interval", ["65", "1..64"]),
    "priority_low": ({"priority": -11}, "priority", ["-11", "-10..10"]),
    "priority_high": ({"priority": 11}, "priority", ["11", "-10..10"]),
    "tenant_long": ({"tenant": "t" * 65}, "tenant", ["ttt", "65", "64"]),
    "model_unknown": ({"model": "no-such-model"}, "model", ["no-such-model", "prometheus-mini"]),
    "model_long": ({"model": "m" * 65}, "model", ["mmm", "65", "64"]),
    "metadata_many": ({"metadata": {str(n): "" for n in range(17)}}, "metadata", ["17", "0..16"]),
    "metadata_key": ({"metadata": {"k" * 65: ""}}, "metadata", ["kkk", "65", "64"]),
    "metadata_value": ({"metadata": {"key": "v" * 1025}}, "metadata", ["key", "1025", "1024"]),
}

EDGES = [{"max_length": 1}, {"max_length": 256, "num_beams": 2}, {"max_length": 7, "min_length": 7}, {"temperature": 100.0, "do_sample": True, "max_length": 8},
         {"temperature": 1e-30, "do_sample": True}, {"top_k": VOCABULARY, "do_sample": True}, {"top_p": 1.0, "do_sample": True},
         {"top_p": 1e-30, "do_sample": True}, {"repetition_penalty": 10.0}, {"repetition_penalty": 1e-3, "max_length": 8},
         {"length_penalty": -10.0, "num_beams": 2}, {"length_penalty": 10.0, "num_beams": 2},
         {"num_beams": 8, "num_return_sequences": 8}, {"num_return_sequences": 8, "do_sample": True},
         {"stop": [chr(97 + n) * 64 for n in range(8)]}, {"stream_interval": 64, "stream": True},
         {"priority": -10}, {"priority": 10}, {"tenant": "т" * 32}, {"model": "prometheus-mini"},
         {"metadata": {str(n) * (64 if n < 10 else 32): "v" * 1024 for n in range(16)}},
         {"source_tokens": [0] * 255 + [3], "prompt": ""}, {"source_tokens": [2999], "prompt": LONG_PROMPT},
         {"deadline_us": 2 ** 62}, {"seed": 2 ** 63 - 1, "do_sample": True}, {"created_at_us": 0}, {"created_at_us": -1}]


@pytest.fixture(scope="module")
def outcomes(main_realm, main_worker):
    jobs = {name: request(**fields) for name, (fields, _, _) in BAD.items()}
    results = main_realm.run(*jobs.values())
    return dict(zip(jobs, zip(jobs.values(), results)))


@pytest.mark.parametrize("name", BAD)
def test_out_of_range_fails_with_field_value_and_range(name, outcomes, main):
    _, field, parts = BAD[name]
    job, result = outcomes[name]
    assert result["status"] == "failed", name
    assert result["error"]["class"] == "invalid"
    message = result["error"]["message"]
    assert message.startswith(field) and all(part in message for part in parts), message
    assert message.count(";") == 0, f"one bad field, more than one complaint: {message}"
    assert result["sequences"] == [] and result["usage"]["generated_tokens"] == 0
    final, = main.final_events(job["job_id"])
    assert (final["state"], final["error"]) == ("failed", result["error"])
    assert not final["dead_lettered"]


def test_every_bad_field_is_named(main):
    bad = {"max_length": 0, "temperature": 0.0, "top_k": -1, "top_p": 2.0, "repetition_penalty": 0.0, "length_penalty": 99.0,
           "num_beams": 9, "stop": [""], "stream_interval": 0, "priority": 99, "tenant": "t" * 65, "model": "x",
           "target_language": "xx", "author": "nobody", "prompt": ""}
    result, = main.run(request(**bad))
    for field in bad:
        assert f"{field}" in result["error"]["message"], field


def test_the_edges_of_every_range_are_accepted(main):
    for fields, result in zip(EDGES, main.run(*[request(**fields) for fields in EDGES])):
        assert result["status"] == "completed", (fields, result["error"])


def test_validation_comes_before_the_deadline(main):
    past = int(time.time() * 1e6) - 1
    bad, good = main.run(request(max_length=0, deadline_us=past), request(deadline_us=past))
    assert (bad["status"], good["status"]) == ("failed", "expired")


def test_bad_ones_do_not_disturb_good_ones(main, generate):
    good = [request(f"This is sentence number {n}.") for n in range(10)]
    bad = [request(num_beams=9) for _ in range(10)]
    results = main.run(*[job for pair in zip(good, bad) for job in pair])
    assert [r["status"] for r in results] == ["completed", "failed"] * 10
    assert [r["sequences"][0]["text"] for r in results[::2]] == [r["sequences"][0]["text"] for r in generate(good)]
