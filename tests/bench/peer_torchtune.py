"""The peer: torchtune's recipe for LoRA on one device, by its settings for Llama 3.2; after each step it appends a line to a file.

VENV/bin/python tests/bench/peer_torchtune.py SETTINGS.json        VENV: CACHE/venvs/torchtune, made by race.py

Changed of those settings is what the race prescribes: the model's shape, rows in their order, the micro-batch, a constant rate,
no decay, gradients clipped at 1. Left alone are the loss in chunks, the fused AdamW, and no activations computed again.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
import torchtune
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from torchtune.data import padded_collate_sft

ASKED = json.loads(Path(sys.argv[1]).read_text())
RECIPES = Path(torchtune.__file__).parents[1] / "recipes"
SEEN = {"tokens": 0, "targets": 0}
IGNORED = -100


def main():
    config = OmegaConf.merge(
        OmegaConf.load(RECIPES / "configs" / "llama3_2" / "1B_lora_single_device.yaml"), settings()
    )
    # The folder refuses to be imported; `tune run` runs its files in this way, too.
    recipe = runpy.run_path(str(RECIPES / "lora_finetune_single_device.py"))["LoRAFinetuneRecipeSingleDevice"](config)
    recipe.setup(config)
    recipe.train()
    recipe.cleanup()


def settings():
    """What is not as in the recipe's own file."""
    return {
        "output_dir": ASKED["out"],
        "model": model(),
        "tokenizer": {"_component_": "__main__.Rows", "path": ASKED["model"], "max_seq_len": ASKED["max_length"]},
        "checkpointer": {"checkpoint_dir": ASKED["model"], "checkpoint_files": ["model.safetensors"]},
        "dataset": {
            "_component_": "torchtune.datasets.instruct_dataset",
            "source": "json",
            "data_files": ASKED["rows"],
            "cache_dir": f"{ASKED['out']}.data",
            "column_map": {"input": "prompt", "output": "response"},
        },
        "collate_fn": "__main__.counted",
        "seed": ASKED["seed"],
        "shuffle": False,
        "batch_size": ASKED["micro"],
        "gradient_accumulation_steps": ASKED["total"] // ASKED["micro"],
        "optimizer": {"lr": ASKED["lr"], "weight_decay": 0.0},
        "lr_scheduler": {"_component_": "__main__.constant"},
        "clip_grad_norm": 1.0,
        "metric_logger": {"_component_": "__main__.Lines"},
        "device": "cpu",
        "dtype": ASKED["precision"],
    }


def model():
    of = json.loads((Path(ASKED["model"]) / "config.json").read_text())
    return {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2",
        "vocab_size": of["vocab_size"],
        "num_layers": of["num_hidden_layers"],
        "num_heads": of["num_attention_heads"],
        "num_kv_heads": of["num_key_value_heads"],
        "embed_dim": of["hidden_size"],
        "intermediate_dim": of["intermediate_size"],
        "max_seq_len": of["max_position_embeddings"],
        "norm_eps": of["rms_norm_eps"],
        "rope_base": int(of["rope_parameters"]["rope_theta"]),
        "scale_factor": 1,  # positions as they are
        "tie_word_embeddings": of["tie_word_embeddings"],
        "quantize_base": ASKED["strategy"] == "qlora",
        "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
        "lora_rank": ASKED["options"]["rank"],
        "lora_alpha": ASKED["options"]["alpha"],
    }


class Rows:
    """The model's tokenizer, by the workloads' chat template; torchtune has one for each of its own models alone."""

    def __init__(self, path, max_seq_len):
        self.reads = Tokenizer.from_file(f"{path}/tokenizer.json")
        told = json.loads((Path(path) / "tokenizer_config.json").read_text())
        self.pad_id = self.reads.token_to_id(told["pad_token"])
        self.max_seq_len = max_seq_len

    def __call__(self, sample):
        asked, answer = (message.text_content for message in sample["messages"])
        prompt = f"<|user|>{asked}<|assistant|>"
        before, ids = (
            self.reads.encode(text, add_special_tokens=False).ids[: self.max_seq_len]
            for text in (prompt, f"{prompt}{answer}<|end|>")
        )
        return {"tokens": ids, "mask": [at < len(before) for at in range(len(ids))]}


def counted(batch, **named):
    """Rows padded by torchtune, and what is in them noted."""
    SEEN["tokens"] += sum(len(row["tokens"]) for row in batch)
    padded = padded_collate_sft(batch, **named)
    SEEN["targets"] += int((padded["labels"] != IGNORED).sum())
    return padded


def constant(optimizer, **_):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


class Lines:
    """A line for each step, when it is done: what went into it, and its loss."""

    def __init__(self, **_):
        pass

    def log_config(self, config):
        pass

    def log_dict(self, payload, step):
        row = {"step": step, "loss": float(payload["loss"]), **SEEN}
        with Path(ASKED["lines"]).open("a") as file:
            file.write(json.dumps(row) + "\n")
        SEEN.update(tokens=0, targets=0)

    def close(self):
        pass


if __name__ == "__main__":
    main()
