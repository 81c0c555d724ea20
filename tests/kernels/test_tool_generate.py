# SPDX-License-Identifier: MIT
"""pgpt-engine generate: requests in, results out, by the command line alone."""
import json
import random
import subprocess
import sys
import time
import uuid

import pytest
from tool import ENGINE, MODEL, ROOT, cases, engine, generate, refused



def fields(record):
    return json.loads((ROOT / "schema" / f"{record}.avsc").read_text())["fields"]


RESULT = [field["name"] for field in fields("GenerationResult")]
REQUEST = fields("GenerationRequest")
SOURCE = [4, 1366, 284, 747, 642, 287, 285, 2944, 3]


def of_case(case, **more):
    author = (case["author"] or "").strip("<>")
    return {"prompt": case["prompt"], "target_language": case["target_language"] or "",
            "author": author, **more}


def test_golden_texts_in_the_order_of_the_input():
    some = cases()[:60]
    results = generate([of_case(c) for c in some])
    assert [r["sequences"][0]["text"] for r in results] == [c["greedy_text"] for c in some]
    for case, result in zip(some, results):
        ids = case["greedy_ids"][1:]
        ended = ids[-1] == 3
        assert result["sequences"][0]["token_ids"] == (ids[:-1] if ended else ids)
        assert result["usage"] == {"prompt_tokens": len(case["input_ids"]),
                                   "generated_tokens": len(ids)}
        assert list(result) == RESULT
        assert result["status"] == "completed" and result["error"] is None
        assert result["timings"]["total_us"] >= result["timings"]["decode_us"] > 0


def test_beams_and_penalty_are_the_reference():
    some = cases()[:20]
    beams = generate([of_case(c, num_beams=4, early_stopping=True) for c in some])
    assert [r["sequences"][0]["text"] for r in beams] == [c["beam4_text"] for c in some]
    penalised = generate([of_case(c, repetition_penalty=1.3) for c in some])
    for case, result in zip(some, penalised):
        assert [0] + result["sequences"][0]["token_ids"] == \
            [i for i in case["greedy_rep1.3_ids"] if i != 3]


def mixed_requests(count):
    draw = random.Random(5)
    kinds = [{}, {"do_sample": True, "seed": 7, "top_p": 0.9},
             {"do_sample": True, "num_return_sequences": 3, "seed": 8, "temperature": 1.3},
             {"num_beams": 3, "num_return_sequences": 2}, {"repetition_penalty": 1.2},
             {"max_length": 5}, {"stop": ["о"]}, {"min_length": 12, "max_length": 30}]
    return [of_case(draw.choice(cases()), **kinds[i % len(kinds)], metadata={"n": str(i)})
            for i in range(count)]


def test_results_do_not_depend_on_rows_steps_threads_or_order():
    requests = mixed_requests(48)
    seen = []
    for options in (["--rows", "8", "--steps", "1"], ["--rows", "64", "--steps", "16"],
                    ["--threads", "1"], ["--rows", "16", "--unordered"]):
        results = generate(requests, *options)
        assert len(results) == len(requests)
        results.sort(key=lambda r: int(r["metadata"]["n"]))
        seen.append([(r["sequences"], r["usage"], r["status"]) for r in results])
    assert all(s == seen[0] for s in seen)


def test_unordered_writes_short_ones_first():
    requests = [of_case(cases()[0], min_length=100, metadata={"n": "long"}),
                of_case(cases()[1], max_length=1, metadata={"n": "short"})]
    order = [r["metadata"]["n"] for r in generate(requests, "--unordered", "--steps", "1")]
    assert order == ["short", "long"]
    assert [r["metadata"]["n"] for r in generate(requests)] == ["long", "short"]


def test_missing_fields_take_the_defaults_of_the_schema():
    spelled = {f["name"]: f["default"] for f in REQUEST if "default" in f}
    prompt = {"prompt": "Where was your son?", "target_language": "ru"}
    short, long = generate([prompt, {**spelled, **prompt, "created_at_us": 1,
                                     "job_id": str(uuid.uuid4())}])
    assert short["sequences"] == long["sequences"]


def test_job_id_is_made_from_the_line_and_gives_the_seed():
    sampled = {"source_tokens": SOURCE, "do_sample": True, "temperature": 2.0}
    results = generate([sampled, "", sampled, {**sampled, "seed": 3}, {**sampled, "seed": 1}])
    assert [r["job_id"] for r in results] == [
        f"00000000-0000-{n:04x}-0000-000000000000" for n in (1, 3, 4, 5)]
    texts = [r["sequences"][0]["text"] for r in results]
    assert texts[1] == texts[2] and texts[0] == texts[3] and texts[0] != texts[1]


def test_stop_ends_the_text_before_it():
    whole, = generate([of_case(cases()[0])])
    text = whole["sequences"][0]["text"]
    stop = text[len(text) // 2:][:3]
    cut, = generate([of_case(cases()[0], stop=[stop])])
    assert cut["sequences"][0]["text"] == text[:text.index(stop)]
    assert cut["sequences"][0]["finish_reason"] == "stop"


def test_deadline_in_the_past_expires():
    late, alive = generate([of_case(cases()[0], deadline_us=1),
                            of_case(cases()[0], deadline_us=int((time.time() + 3600) * 1e6))],
                           code=1)
    assert late["status"] == "expired" and late["sequences"] == [] and late["error"] is None
    assert alive["status"] == "completed"


BAD = [
    ({"max_length": 0}, "max_length: 0 is outside 1..256"),
    ({"max_length": "5"}, 'max_length: "5" is not an integer in -2147483648..2147483647'),
    ({"max_length": 1.5}, "max_length: 1.5 is not an integer"),
    ({"max_length": 2**40}, "max_length: 1099511627776 is not an integer"),
    ({"max_length": None}, "max_length: null is not an integer"),
    ({"min_length": 200}, "min_length: 200 is outside 0..128"),
    ({"do_sample": 1}, "do_sample: 1 is not true or false"),
    ({"temperature": 0}, "temperature: 0 is outside > 0..100"),
    ({"temperature": 1e39}, "temperature: inf is outside > 0..100"),
    ({"temperature": "warm"}, 'temperature: "warm" is not a number'),
    ({"top_k": 3001}, "top_k: 3001 is outside 0..3000"),
    ({"top_p": 1.01}, "top_p: 1.01 is outside > 0..1"),
    ({"repetition_penalty": -1}, "repetition_penalty: -1 is outside > 0..10"),
    ({"length_penalty": 11}, "length_penalty: 11 is outside -10..10"),
    ({"num_beams": 9}, "num_beams: 9 is outside 1..8"),
    ({"num_return_sequences": 2}, "num_return_sequences: 2 needs do_sample or num_beams"),
    ({"num_beams": 2, "do_sample": True}, "do_sample: true excludes num_beams 2"),
    ({"stop": ["a"] * 9}, "stop: 9 strings, the range is 0..8"),
    ({"stop": "a"}, 'stop: "a" is not a list of strings'),
    ({"stop": [1]}, "stop: [1] is not a list of strings"),
    ({"seed": "x"}, 'seed: "x" is not null or an integer of 64 bits'),
    ({"stream_interval": 65}, "stream_interval: 65 is outside 1..64"),
    ({"priority": 11}, "priority: 11 is outside -10..10"),
    ({"tenant": "t" * 65}, "has 65 bytes, the limit is 64"),
    ({"model": "other"}, 'model: "other" is not served here'),
    ({"target_language": "xx"}, 'target_language: "xx" is no language of the model'),
    ({"author": "nobody"}, 'author: "nobody" is no author of the model'),
    ({"metadata": {"k": 1}}, 'metadata: {"k":1} is not an object of strings'),
    ({"metadata": {"k": "v" * 1025}}, 'has 1025 bytes, the limit is 1024'),
    ({"job_id": "7"}, 'job_id: "7" is not a UUID of 36 characters'),
    ({"prompt": ""}, "prompt: it is empty"),
    ({"prompt": 5}, "prompt: 5 is not a string"),
    ({"prompt": "word " * 400}, "tokens are outside 1..256"),
    ({"source_tokens": []}, "source_tokens: 0 tokens are outside 1..256"),
    ({"source_tokens": [3000]}, "source_tokens[0]: 3000 is outside 0..2999"),
    ({"source_tokens": [1.0]}, "source_tokens: [1.0] is not null or a list of integers"),
    ({"temprature": 0.5}, "temprature: 0.5 is given, but GenerationRequest has no such field"),
]


def test_bad_fields_fail_their_line_alone():
    good = {"prompt": "Hello.", "target_language": "ru"}
    requests = [r for fields, _ in BAD for r in ({**good, **fields}, good)]
    results = generate(requests, code=1)
    for (_, message), bad, fine in zip(BAD, results[::2], results[1::2]):
        assert bad["status"] == "failed" and bad["sequences"] == []
        assert bad["error"]["class"] == "invalid"
        assert message in bad["error"]["message"]
        assert fine["status"] == "completed"


def test_every_bad_field_of_a_line_is_named():
    result, = generate([{"prompt": "x", "max_length": "a", "top_p": 3, "num_beams": 0, "foo": 1}],
                       code=1)
    for field in ("max_length", "top_p", "num_beams", "foo"):
        assert f"{field}: " in result["error"]["message"]


def test_lines_that_are_no_json():
    lines = ["not json", "[1, 2]", "", '{"prompt": "a", "prompt": "b"}',
             r'{"prompt": "\ud800"}', "   ",
             '{"prompt": "' + "x" * (5 << 20) + '"}',
             json.dumps({"prompt": "Hello.", "target_language": "ru"})]
    results = generate(lines, code=1)
    assert [r["status"] for r in results[:-1]] == ["failed"] * 5 and len(results) == 6
    assert results[-1]["status"] == "completed"
    for number, result in zip((1, 2, 4, 7), [results[0], results[1], results[2], results[4]]):
        assert f"line {number}: " in result["error"]["message"]
    assert "it has more than 4194304 bytes" in results[4]["error"]["message"]


def test_bytes_that_are_no_utf8():
    done = subprocess.run([ENGINE, "generate", "--model", MODEL],
                          input=b'{"prompt": "\xff\xfe"}\n\x00\x01{\xc3\n{"prompt":"Hi."\n'
                          b'{"s":"a\\\xde\x9a+\xd9u"}\n',
                          timeout=60, capture_output=True)
    results = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [r["status"] for r in results] == ["failed"] * 4 and done.returncode == 1
    assert all(f"line {n}: it is no JSON" in r["error"]["message"]
               for n, r in enumerate(results, 1))


def test_token_ids_alone():
    with_text, = generate([{"source_tokens": SOURCE}])
    tokens, = generate([{"source_tokens": SOURCE}], "--tokens")
    assert tokens["sequences"][0]["token_ids"] == with_text["sequences"][0]["token_ids"]
    assert tokens["sequences"][0]["text"] == "" and tokens["sequences"][0]["score"] == \
        with_text["sequences"][0]["score"]
    prompt, stop, language = generate(
        [{"prompt": "Hi."}, {"source_tokens": SOURCE, "stop": ["a"]},
         {"source_tokens": SOURCE, "target_language": "ru"}], "--tokens", code=1)
    assert "source_tokens is needed" in prompt["error"]["message"]
    assert "range is 0..0" in stop["error"]["message"]
    assert "target_language" in language["error"]["message"]


def test_a_pipe_gets_each_result_before_the_next_request():
    worker = subprocess.Popen([ENGINE, "generate", "--model", MODEL], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        for prompt in ("Hello.", "", "Good night."):
            worker.stdin.write(json.dumps({"prompt": prompt, "target_language": "ru"}) + "\n")
            worker.stdin.flush()
            result = json.loads(worker.stdout.readline())
            assert (result["status"] == "completed") == bool(prompt)
        worker.stdin.close()
        assert worker.wait(timeout=30) == 1
    finally:
        worker.kill()
        worker.stdout.close()
        worker.wait()


def peak_memory(tmp_path, lines, *arguments):
    """KiB that generate takes at most; every line must give a result."""
    count = 0
    with open(tmp_path / "in", "w", encoding="utf-8") as file:
        for count, line in enumerate(lines, 1):
            file.write(json.dumps(line) + "\n")
    script = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=False); "
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    done = subprocess.run(
        [sys.executable, "-c", script, ENGINE, "generate", "--model", MODEL, *arguments,
         "--input", tmp_path / "in", "--output", tmp_path / "out"], capture_output=True,
        text=True, timeout=300, check=True)
    assert (tmp_path / "out").read_text().count("\n") == count
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path):
    def lines(count):
        for i in range(count):
            yield ({"source_tokens": SOURCE, "max_length": 1} if i % 50 == 0
                   else {"prompt": "x" * 2000, "top_p": 2})

    small, large = (peak_memory(tmp_path, lines(n), "--rows", "8") for n in (500, 20000))
    assert large < small + 20 * 1024, (small, large)  # the input has 40 MB


def test_output_that_cannot_be_written_is_told():
    done = engine("generate", "--model", MODEL, "--output", "/dev/full",
                  text='{"prompt": "Hello."}\n')
    assert done.returncode == 3 and "could not be written" in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["generate"], "--model is missing"),
    (["generate", "--model", "models/none"], "models/none/config.json"),
    (["generate", "--model", MODEL, "--input", "/nonexistent"], "/nonexistent"),
    (["generate", "--model", MODEL, "--output", "/nonexistent/x"], "/nonexistent/x"),
    (["generate", "--model", MODEL, "--rows", "many"], '--rows: "many" is no number'),
    (["generate", "--model", MODEL, "--rows", "-1"], "--rows: -1 is outside 0..65536"),
    (["generate", "--model", MODEL, "--memory", "5q"], '--memory: "5q" is no number'),
    (["generate", "--model", MODEL, "--memory", "1k"], "memory"),
    (["generate", "--model", MODEL, "--steps"], "--steps: its value K is missing"),
    (["generate", "--model", MODEL, "--tokens=1"], "--tokens: takes no value"),
    (["generate", "--model", MODEL, "--bogus"], "--bogus: no such option"),
    (["generate", "--model", MODEL, "--device", "tpu"], "tpu"),
    (["generate", "--model", MODEL, "--compute", "fp8"], "fp8"),
    (["frobnicate"], "frobnicate: no such command"),
    (["verify", "--model", MODEL, "--only", "ids,nothing"], '"nothing" is none of'),
    (["bench", "--model", MODEL, "--batch", "1,x"], '--batch: "x" is no number'),
    (["bench", "--model", MODEL, "--batch", "1", "--source", "300"], "300"),
    (["bench", "--model", MODEL, "--beams", "2", "--sample"], "--sample excludes --beams"),
])
def test_bad_calls_give_one_line_and_2(arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize("command", ["info", "verify", "bench", "generate"])
def test_help_teaches(command):
    done = engine(command, "--help")
    assert done.returncode == 0 and not done.stderr
    assert "usage: pgpt-engine " + command in done.stdout and "examples:" in done.stdout
    for option in ("--model", "--device", "--compute", "--threads", "--memory"):
        assert option in done.stdout
    if command == "generate":
        assert all(f["name"] in done.stdout for f in REQUEST)
