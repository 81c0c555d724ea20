#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""BLEU of compute formats over parallel texts, both ways.

    tests/kernels/bleu.py requests FILE.tsv... > requests.jsonl      lines "English TAB Russian", .xz or plain
    pgpt-engine generate --model models/prometheus-mini --device cuda:0 --compute int8 --rows 2048 \\
        --input requests.jsonl --output int8.jsonl                   wherever the device is
    tests/kernels/bleu.py score --against fp32.jsonl requests.jsonl fp32.jsonl int8.jsonl...

`score` prints a Markdown table: BLEU by file and direction, and how many lines are the same text as in --against. It
needs sacrebleu; the others need nothing. The reference travels in each request's metadata."""
import argparse
import json
import lzma
import pathlib
import sys


def pairs(path):
    with (lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")) as lines:
        for line in lines:
            yield line.rstrip("\n").split("\t")[:2]


def requests_write(paths):
    for path in paths:
        both = list(pairs(path))
        for name, source, target, language in (("en-ru", 0, 1, "ru"), ("ru-en", 1, 0, "en")):
            for pair in both:
                print(json.dumps({"prompt": pair[source], "target_language": language, "metadata": {
                    "set": f"{path.name.split('.')[0].split('-')[0]} {name}", "reference": pair[target]}},
                    ensure_ascii=False))


def texts(path):
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    failed = sum(r["status"] != "completed" for r in found)
    if failed:
        print(f"{path}: {failed} lines did not complete and count as empty", file=sys.stderr)
    return [r["sequences"][0]["text"] if r["sequences"] else "" for r in found]


def score(requests, against, results):
    import sacrebleu
    with requests.open(encoding="utf-8") as lines:
        asked = [json.loads(line)["metadata"] for line in lines]
    sets = {}
    for n, metadata in enumerate(asked):
        sets.setdefault(metadata["set"], []).append(n)
    base = texts(against)
    print("| | " + " | ".join(sets) + " | same text |\n" + "|---" * (len(sets) + 2) + "|")
    for path in results:
        got = texts(path)
        if len(got) != len(asked):
            sys.exit(f"{path}: {len(got)} results for {len(asked)} requests")
        figures = [sacrebleu.corpus_bleu([got[n] for n in lines], [[asked[n]["reference"] for n in lines]]).score
                   for lines in sets.values()]
        same = sum(a == b for a, b in zip(got, base)) / len(base)
        print(f"| {path.stem} | " + " | ".join(f"{f:.2f}" for f in figures) + f" | {100 * same:.1f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("requests").add_argument("files", nargs="+", type=pathlib.Path)
    scored = commands.add_parser("score")
    scored.add_argument("--against", required=True, type=pathlib.Path)
    scored.add_argument("requests", type=pathlib.Path)
    scored.add_argument("results", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    if options.command == "requests":
        requests_write(options.files)
    else:
        score(options.requests, options.against, options.results)


if __name__ == "__main__":
    main()
