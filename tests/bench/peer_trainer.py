"""The peer: transformers' Trainer with PEFT, as anyone would write it; after each step it appends a line to a file.

python tests/bench/peer_trainer.py SETTINGS.json        the settings are made by race.py
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

ASKED = json.loads(Path(sys.argv[1]).read_text())
CHAT = ASKED["task"] == "chat"
BF16 = ASKED["precision"] == "bf16"
SEEN = {"tokens": 0, "targets": 0}


def main():
    set_seed(ASKED["seed"])
    if ASKED.get("medium"):
        torch.set_float32_matmul_precision("medium")
    tokenizer = AutoTokenizer.from_pretrained(ASKED["model"])
    rows = [json.loads(line) for line in Path(ASKED["rows"]).read_text().splitlines()]
    labels = sorted({row["label"] for row in rows}) if not CHAT else []
    data = [asked(row, tokenizer) if CHAT else classed(row, tokenizer, labels) for row in rows]
    if ASKED.get("trl"):
        from datasets import Dataset

        data = Dataset.from_list(data)  # its trainer takes nothing else
    trainer = Counting(
        model=adapted(loaded(labels)),
        processing_class=tokenizer,
        args=arguments(),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer) if CHAT else DataCollatorWithPadding(tokenizer),
        callbacks=[Telling()],
    )
    trainer.train()


def arguments():
    return TrainingArguments(
        output_dir=ASKED["out"],
        num_train_epochs=1,
        per_device_train_batch_size=ASKED["micro"],
        gradient_accumulation_steps=ASKED["total"] // ASKED["micro"],
        learning_rate=ASKED["lr"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=BF16,
        disable_tqdm=True,
        seed=ASKED["seed"],
        **({"dataset_kwargs": {"skip_prepare_dataset": True}} if ASKED.get("trl") else {}),
        train_sampling_strategy="group_by_length" if ASKED.get("group") else "sequential",
    )


def loaded(labels):
    dtype = torch.bfloat16 if BF16 and not ASKED.get("autocast") else torch.float32
    if not CHAT:
        names = dict(enumerate(labels))
        ids = {name: number for number, name in names.items()}
        return AutoModelForSequenceClassification.from_pretrained(
            ASKED["model"], dtype=dtype, num_labels=len(labels), id2label=names, label2id=ids
        )
    more = {}
    if ASKED["strategy"] == "qlora":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return AutoModelForCausalLM.from_pretrained(ASKED["model"], dtype=dtype, **more)


def adapted(model):
    model.config.use_cache = False
    if ASKED["strategy"] == "layerwise":
        for weight in model.parameters():
            weight.requires_grad = False
        last = model.base_model.encoder.layer[-ASKED["options"]["last"] :]
        for part in [last, model.classifier, model.base_model.pooler]:
            for weight in part.parameters():
                weight.requires_grad = True
    if ASKED["strategy"] in ("lora", "qlora"):
        kind = "CAUSAL_LM" if CHAT else "SEQ_CLS"
        rank, alpha = ASKED["options"]["rank"], ASKED["options"]["alpha"]
        return get_peft_model(model, LoraConfig(task_type=kind, r=rank, lora_alpha=alpha, target_modules="all-linear"))
    return model


def asked(row, tokenizer):
    """Prompt and answer by the chat template; only the answer is learnt."""
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=ASKED["max_length"])["input_ids"]
    before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * before + ids[before:]}


def classed(row, tokenizer, labels):
    read = tokenizer(row["text"], truncation=True, max_length=ASKED["max_length"])
    return {**read, "label": labels.index(row["label"])}


if ASKED.get("trl"):
    sys.path.append(ASKED["trl"])
    from trl import SFTConfig as TrainingArguments
    from trl import SFTTrainer as Trainer


class Counting(Trainer):
    """Counts the useful tokens and the targets that go into each step."""

    def training_step(self, model, inputs, *rest, **named):
        SEEN["tokens"] += int(inputs["attention_mask"].sum())
        SEEN["targets"] += int((inputs["labels"] != -100).sum())
        return super().training_step(model, inputs, *rest, **named)


class Telling(TrainerCallback):
    """A line for each step, when it is done: what went into it, and its loss."""

    def on_log(self, args, state, control, logs=None, **more):
        if "loss" in logs:
            row = {"step": state.global_step, "loss": float(logs["loss"]), **SEEN}
            with Path(ASKED["lines"]).open("a") as file:
                file.write(json.dumps(row) + "\n")
            SEEN.update(tokens=0, targets=0)


if __name__ == "__main__":
    main()
