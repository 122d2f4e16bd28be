"""Tiny models of every architecture the tests speak of, random but always the same, and a tokenizer built on the spot.

model = tiny("llama")                                   # a LlamaForCausalLM of two layers, 32 wide
model = tiny("bert", num_labels=3)                      # a BertForSequenceClassification
folder = save_tiny(tmp_path / "base", "t5")             # model and tokenizer, for from_pretrained(folder)
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 320
HIDDEN, LAYERS, HEADS, MLP, POSITIONS = 32, 2, 4, 64, 128
UNK, BOS, EOS, PAD = 0, 1, 2, 3
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOKENS = [*NAMED.values(), "<|system|>", "<|user|>", "<|assistant|>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TEXT = [
    "The quick brown fox jumps over the lazy dog while the small cat sleeps in the warm sun.",
    "What is the capital of France? The capital of France is Paris, and it lies on the river Seine.",
    "Write a function that returns the sum of two numbers, and say in one sentence what it does.",
    "def add(first, second): return first + second  # the sum of the first and the second number",
    "I liked this film very much; the other one was long, dull and far too loud. 0 1 2 3 4 5 6 7 8 9",
]

SPECIAL = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
PLAIN = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": MLP}
LONG = {"max_position_embeddings": POSITIONS}
BERT = {**PLAIN, **LONG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
ONE_SIDE = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": MLP}
TWO_SIDES: dict[str, float] = {
    f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in ONE_SIDE.items()
}
TWO_SIDES |= {"d_model": HIDDEN, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", {**BERT, "max_position_embeddings": POSITIONS + PAD + 1}),
    "albert": ("Albert", {**BERT, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
    "distilbert": (
        "DistilBert",
        {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": MLP, **LONG}
        | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0},
    ),
    "electra": ("Electra", {**BERT, "embedding_size": 16, "summary_last_dropout": 0.0}),
    "gpt2": (
        "GPT2",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": MLP, "n_positions": POSITIONS}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0},
    ),
    "llama": ("Llama", {**PLAIN, **LONG, "num_key_value_heads": 2, "attention_dropout": 0.0}),
    "qwen": ("Qwen2", {**PLAIN, **LONG, "num_key_value_heads": 2, "attention_dropout": 0.0}),
    "gemma": ("Gemma", {**PLAIN, **LONG, "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.0}),
    "t5": (
        "T5",
        {"d_model": HIDDEN, "d_kv": 8, "d_ff": MLP, "num_layers": LAYERS, "num_heads": HEADS, "dropout_rate": 0.0}
        | {"classifier_dropout": 0.0, "decoder_start_token_id": PAD},
    ),
    "bart": (
        "Bart",
        {**TWO_SIDES, **LONG, "classifier_dropout": 0.0, "decoder_start_token_id": EOS, "forced_eos_token_id": EOS},
    ),
    "marian": ("Marian", {**TWO_SIDES, **LONG, "classifier_dropout": 0.0, "decoder_start_token_id": PAD}),
    "vit": (
        "ViT",
        {**PLAIN, "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "whisper": (
        "Whisper",
        {**TWO_SIDES, "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": POSITIONS}
        | {"decoder_start_token_id": BOS, "classifier_proj_size": 16},
    ),
}
FAMILIES = tuple(CONFIGS)
DECODERS = ("gpt2", "llama", "qwen", "gemma")
ENCODERS = ("bert", "roberta", "albert", "distilbert", "electra", "vit")
SEQ2SEQ = ("t5", "bart", "marian", "whisper")

CLASSES = {
    "causal_lm": "ForCausalLM",
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "seq2seq": "ForConditionalGeneration",
    "image": "ForImageClassification",
    "speech": "ForConditionalGeneration",
    "base": "Model",
}


def tiny(family: str, *, head: str | None = None, seed: int = 0, **config_overrides: Any) -> PreTrainedModel:
    """A random model in fp32, in training mode and without dropout.

    `head` is one of CLASSES (left out: what the family is mostly used for); everything else replaces values of the
    configuration: `tiny("llama", num_hidden_layers=3, tie_word_embeddings=True)`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(family, head)(config(family, **config_overrides))
    return model.train()


def config(family: str, **overrides: Any) -> Any:
    """The family's configuration, from which `tiny` makes the model."""
    prefix, values = CONFIGS[family]
    text = {} if family == "vit" else {"vocab_size": VOCABULARY, **SPECIAL}
    return getattr(transformers, f"{prefix}Config")(**{**text, **values, **overrides})


def model_class(family: str, head: str | None = None) -> Any:
    """The transformers class of this family with this head."""
    head = head or default_head(family)
    if (family, head) == ("marian", "seq2seq"):
        return transformers.MarianMTModel
    if (family, head) == ("gpt2", "causal_lm"):
        return transformers.GPT2LMHeadModel
    return getattr(transformers, CONFIGS[family][0] + CLASSES[head])


def default_head(family: str) -> str:
    """`causal_lm` for decoders, `seq2seq` for encoder-decoders, classification for encoders."""
    if family in DECODERS:
        return "causal_lm"
    if family in SEQ2SEQ:
        return "seq2seq"
    return "image" if family == "vit" else "sequence_classification"


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of about 300 tokens with a chat template; pad is not eos. Each call gives a new object."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained()), model_max_length=POSITIONS, **NAMED)
    made.chat_template = CHAT_TEMPLATE
    return made


@cache
def _trained() -> str:
    bpe = Tokenizer(models.BPE(unk_token=TOKENS[UNK]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=TOKENS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXT, trainer)
    return bpe.to_str()


def save_tiny(folder: Path, family: str = "llama", **kw: Any) -> Path:
    """Save a tiny model and the tokenizer, so that `from_pretrained(folder)` works for both; returns the folder.

    Models that read pixels or sound get the matching processor too.
    """
    tiny(family, **kw).save_pretrained(folder)
    if family != "vit":
        tokenizer().save_pretrained(folder)
    if family in ("vit", "whisper"):
        _save_processor(family, folder)
    return folder


def _save_processor(family: str, folder: Path) -> None:
    if family == "vit":  # written by hand: making the object needs Pillow, which only the image task needs
        sizes = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        settings = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True, **sizes}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
