#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tests/text/vectors.json: what Hugging Face's MarianTokenizer says about prompts and about
random token ids, for test_text.c to compare with. Needs transformers and sentencepiece.

    make_vectors.py MODEL_DIR > tests/text/vectors.json
"""
import json
import random
import sys

from transformers import MarianTokenizer

PROMPTS = [
    "", " ", "  two  spaces  ", ">>ru<< hello", ">>xx<< hello", ">>ru<<", ">>ru<<hello", ">> ru << hello",
    " >>ru<< hello", ">>en", "hi </s> there", " </s>>>ru<<x", "a<unk>b <pad>c", "<author_0> hi", "<author_3", "a <s> b",
    "</s></s>", "</s", "<", "x\ny\tz\r\n", "\u00a0hi\u200b", "ﬁne ½ Ⅳ ｆｕｌｌ", "e\u0301 е\u0308", "日本語 中文", "😀👨‍👩‍👧 ok",
    "\u2581mark \u2581", "Ёлка, ёж и «кавычки» — тире…", "A" * 200, "a b " * 60, "\x00nul\x00", "\u202eright", "1 000 000,50 €",
]


def random_prompt(rng):
    alphabet = "абвгдежзийклмнопрстуфхцчшщъыьэюя АБВ abcdefghij XYZ ,.!?-«»—…0123456789 \u00a0\u3000é漢😀<>/s"
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60)))


def random_ids(rng, size, byte0):
    kind = rng.random()
    if kind < 0.3:
        return [rng.randrange(size) for _ in range(rng.randint(0, 40))]
    ids = []
    for _ in range(rng.randint(1, 20)):
        pick = rng.random()
        if pick < 0.3:
            ids.append(rng.randrange(byte0 + 256, size))
        elif pick < 0.4:
            ids.append(rng.randrange(byte0))
        elif pick < 0.7:  # a whole character, perhaps cut short or with something inside it
            text = rng.choice(["é", "漢", "😀", "\u2581", "\u00a0", "\u3000", " ", "\n", "\u0085", "\ud800", "\u0000"])
            spelt = [byte0 + b for b in text.encode("utf-8", "surrogatepass")]
            if rng.random() < 0.3:
                spelt = spelt[: rng.randint(0, len(spelt))]
            if rng.random() < 0.2 and len(spelt) > 1:
                spelt.insert(1, rng.choice([0, 1, 2, 3, 4]))
            ids += spelt
        else:
            ids += [byte0 + rng.randrange(256) for _ in range(rng.randint(1, 5))]
    return ids


def main():
    tokenizer = MarianTokenizer.from_pretrained(sys.argv[1])
    rng = random.Random(20250101)
    byte0 = tokenizer.encoder["<0x00>"]
    prompts = PROMPTS + [random_prompt(rng) for _ in range(200)]
    sequences = [random_ids(rng, len(tokenizer.encoder), byte0) for _ in range(500)]
    out = {
        "encode": [[p, tokenizer(p).input_ids] for p in prompts],
        "decode": [[s, tokenizer.decode(s, skip_special_tokens=True)] for s in sequences],
    }
    # one case a line; ASCII only, so that white space survives editors
    parts = ['"%s": [\n%s\n]' % (k, ",\n".join(json.dumps(c) for c in v)) for k, v in out.items()]
    print("{\n" + ",\n".join(parts) + "\n}")


main()
