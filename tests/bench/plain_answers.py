"""The peer of answers.py: transformers' own `generate`, and a loss computed over batches, as anyone would write them.

python tests/bench/plain_answers.py generate|loss MODEL ROWS.jsonl OUT
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WHAT, MODEL, ROWS, OUT = sys.argv[1:]
BATCH = 8

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
rows = [json.loads(line) for line in Path(ROWS).read_text().splitlines()]


def prompt(row):
    messages = [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.inference_mode()
def generate():
    tokenizer.padding_side = "left"
    answers = []
    for start in range(0, len(rows), BATCH):
        texts = [prompt(row) for row in rows[start : start + BATCH]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        written = model.generate(**inputs, max_new_tokens=64, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(written, skip_special_tokens=True)
    Path(OUT).write_text("".join(json.dumps({"generated": answer}) + "\n" for answer in answers))


@torch.inference_mode()
def loss():
    total = count = 0.0
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        texts = [prompt(row) + row["response"] + tokenizer.eos_token for row in some]
        named = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": 1024}
        inputs = tokenizer(texts, add_special_tokens=False, **named)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for label, row in zip(labels, some, strict=True):
            label[: len(tokenizer(prompt(row), add_special_tokens=False)["input_ids"])] = -100
        logits = model(**inputs).logits[:, :-1]
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        )
        count += int((labels[:, 1:] != -100).sum())
    Path(OUT).write_text(json.dumps({"loss": total / count}))


{"generate": generate, "loss": loss}[WHAT]()
