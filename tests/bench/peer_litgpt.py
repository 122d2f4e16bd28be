"""The peer: litgpt's own LoRA fine-tuning, at its usual micro-batch of 1; after each step it appends a line to a file.

VENV/bin/python tests/bench/peer_litgpt.py SETTINGS.json        VENV: CACHE/venvs/litgpt, made by race.py

It learns the rows in their order and at a constant rate (left alone it shuffles them, and its rate rises and falls). What it does
otherwise than the others: a loss that is a mean of rows' means, and no clipping; neither changes the work.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import litgpt.finetune.lora as lora
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import JSON
from litgpt.prompts import PromptStyle
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import save_config
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

ASKED = json.loads(Path(sys.argv[1]).read_text())
SEEN = {"tokens": 0, "targets": 0}
SUMS = []
IGNORED = -100


def main():
    checkpoint = converted(Path(ASKED["model"]), Path(ASKED["converted"]))
    rows = Path(ASKED["out"]).with_suffix(".data")
    data = [json.loads(line) for line in Path(ASKED["rows"]).read_text().splitlines()]
    told = [{"instruction": row["prompt"], "output": row["response"]} for row in data]
    rows.mkdir(parents=True)
    (rows / "train.json").write_text(json.dumps(told))
    (rows / "val.json").write_text(json.dumps(told[:1]))
    count_losses()
    lora.get_lr_scheduler = lambda optimizer, **_: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    register_optimizer_step_post_hook(tell)
    lora.setup(
        checkpoint,
        Path(ASKED["out"]),
        precision={"fp32": "32-true", "bf16": "bf16-true"}[ASKED["precision"]],
        lora_r=ASKED["options"]["rank"],
        lora_alpha=ASKED["options"]["alpha"],
        lora_dropout=0.0,
        **{f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")},
        data=Ordered(json_path=rows, mask_prompt=True, prompt_style=Raw(), num_workers=1),
        train=TrainArgs(
            global_batch_size=ASKED["total"],
            micro_batch_size=1,
            lr_warmup_steps=1,
            epochs=1,
            max_seq_length=ASKED["max_length"],
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": ASKED["lr"], "weight_decay": 0.0}},
        seed=ASKED["seed"],
    )


def converted(model, folder):
    """The model as litgpt reads it, made once."""
    if folder.exists():
        return folder
    made = folder.with_name(folder.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    of = json.loads((model / "config.json").read_text())
    config = Config(
        name=folder.name,
        block_size=of["max_position_embeddings"],
        vocab_size=of["vocab_size"],
        padded_vocab_size=of["vocab_size"],
        n_layer=of["num_hidden_layers"],
        n_head=of["num_attention_heads"],
        n_query_groups=of["num_key_value_heads"],
        head_size=of["head_dim"],
        n_embd=of["hidden_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=of["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        intermediate_size=of["intermediate_size"],
        rope_base=10000,
    )
    weights = {}
    copy_weights_hf_llama(config, {}, weights, load_file(model / "model.safetensors"))
    torch.save(weights, made / "lit_model.pth")
    save_config(config, made)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(model / name, made)
    told = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (made / "tokenizer_config.json").write_text(json.dumps(told))
    made.rename(folder)
    return folder


class Raw(PromptStyle):
    """As the workloads' chat template has it."""

    def apply(self, prompt, *, sys_prompt=None, **more):
        return f"<|user|>{prompt}<|assistant|>"


@dataclass
class Ordered(JSON):
    """Rows as they come."""

    def train_dataloader(self):
        shuffling = super().train_dataloader()
        return DataLoader(
            self.train_dataset, batch_size=self.batch_size, num_workers=1, collate_fn=shuffling.collate_fn
        )


def count_losses():
    """Note what goes into each step: its rows' tokens and targets, and the sum of their losses."""
    computed = lora.chunked_cross_entropy

    def counted(logits, targets, *rest, **named):
        loss = computed(logits, targets, *rest, **named)
        if torch.is_grad_enabled():  # else it validates
            number = int((targets != IGNORED).sum())
            SEEN["tokens"] += targets.shape[-1] + 1
            SEEN["targets"] += number
            SUMS.append(float(loss.detach()) * number)
        return loss

    lora.chunked_cross_entropy = counted


def tell(*_):
    row = {"loss": sum(SUMS) / SEEN["targets"], **SEEN}
    with Path(ASKED["lines"]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    SUMS.clear()
    SEEN.update(tokens=0, targets=0)


if __name__ == "__main__":
    main()
