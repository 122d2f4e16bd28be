"""The peer: LLaMA-Factory's supervised fine-tuning with LoRA; after each step it appends a line to a file.

VENV/bin/python tests/bench/peer_llamafactory.py SETTINGS.json        VENV: CACHE/venvs/llamafactory, made by race.py

Activations are not computed again (left alone it does so, to save memory), rows are learnt in their order and not packed; it pads
to multiples of 8, as it does always.
"""

import json
import sys
from pathlib import Path

import llamafactory.train.sft.workflow as workflow
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.template import register_template
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

ASKED = json.loads(Path(sys.argv[1]).read_text())
SEEN = {"tokens": 0, "targets": 0}
IGNORED = -100


def main():
    register_template(
        name="workload",
        format_user=StringFormatter(slots=["<|user|>{{content}}<|assistant|>"]),
        format_assistant=StringFormatter(slots=["{{content}}<|end|>"]),
    )
    workflow.CustomSeq2SeqTrainer = Counting
    run_exp({**settings(), **quantised()}, callbacks=[Telling()])


def settings():
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": ASKED["model"],
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": ASKED["options"]["rank"],
        "lora_alpha": ASKED["options"]["alpha"],
        "lora_dropout": 0.0,
        "dataset_dir": described(),
        "dataset": "rows",
        "template": "workload",
        "cutoff_len": ASKED["max_length"],
        "cache_dir": f"{ASKED['out']}.cache",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "per_device_train_batch_size": ASKED["micro"],
        "gradient_accumulation_steps": ASKED["total"] // ASKED["micro"],
        "num_train_epochs": 1,
        "learning_rate": ASKED["lr"],
        "lr_scheduler_type": "constant",
        "output_dir": ASKED["out"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": ASKED["precision"] == "bf16",
        "seed": ASKED["seed"],
    }


def quantised():
    return {"quantization_bit": 4, "quantization_method": "bnb"} if ASKED["strategy"] == "qlora" else {}


def described():
    """The folder in which LLaMA-Factory finds what the rows are."""
    folder = Path(f"{ASKED['out']}.data")
    folder.mkdir(parents=True)
    rows = {"file_name": ASKED["rows"], "columns": {"prompt": "prompt", "response": "response"}}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": rows}))
    return str(folder)


class Counting(workflow.CustomSeq2SeqTrainer):
    """Counts the useful tokens and the targets that go into each step."""

    def training_step(self, model, inputs, *rest, **named):
        SEEN["tokens"] += int(inputs["attention_mask"].sum())
        SEEN["targets"] += int((inputs["labels"] != IGNORED).sum())
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
