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
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "drop_path_rate": 0.0}),
    "efficientnet": (
        "EfficientNet",
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 1.0,
            "hidden_dim": 320,
            "depth_divisor": 4,
            "dropout_rate": 0.0,
        }
        | {"kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2]}
        | {"depthwise_padding": [], "num_block_repeats": [1, 2], "expand_ratios": [1, 4], "drop_connect_rate": 0.0},
    ),
    "wav2vec2": (
        "Wav2Vec2",
        {**PLAIN, "conv_dim": [16, 16], "conv_kernel": [10, 4], "conv_stride": [10, 4], "feat_extract_norm": "layer"}
        | {"do_stable_layer_norm": True, "num_feat_extract_layers": 2, "classifier_proj_size": 16, "layerdrop": 0.0}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False}
        | {f"{part}_dropout": 0.0 for part in ("hidden", "attention", "activation", "feat_proj", "final")},
    ),
    "whisper": (
        "Whisper",
        {**TWO_SIDES, "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": POSITIONS}
        | {"decoder_start_token_id": BOS, "classifier_proj_size": 16},
    ),
}
FAMILIES = tuple(CONFIGS)
DECODERS = ("gpt2", "llama", "qwen", "gemma")
IMAGES = ("vit", "resnet", "convnext", "efficientnet")
SOUNDS = ("whisper", "wav2vec2")
ENCODERS = ("bert", "roberta", "albert", "distilbert", "electra", *IMAGES, "wav2vec2")
SEQ2SEQ = ("t5", "bart", "marian", "whisper")

CLASSES = {
    "causal_lm": "ForCausalLM",
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "multiple_choice": "ForMultipleChoice",
    "question_answering": "ForQuestionAnswering",
    "seq2seq": "ForConditionalGeneration",
    "image": "ForImageClassification",
    "audio": "ForSequenceClassification",
    "speech": "ForConditionalGeneration",
    "ctc": "ForCTC",
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
    text = {} if family in IMAGES else {"vocab_size": VOCABULARY, **SPECIAL}
    return getattr(transformers, f"{prefix}Config")(**{**text, **values, **overrides})


def model_class(family: str, head: str | None = None) -> Any:
    """The transformers class of this family with this head."""
    head = head or default_head(family)
    if (family, head) == ("marian", "seq2seq"):
        return transformers.MarianMTModel
    if (family, head) == ("gpt2", "causal_lm"):
        return transformers.GPT2LMHeadModel
    if (family, head) == ("whisper", "audio"):
        return transformers.WhisperForAudioClassification
    return getattr(transformers, CONFIGS[family][0] + CLASSES[head])


def default_head(family: str) -> str:
    """`causal_lm` for decoders, `seq2seq` for encoder-decoders, classification for encoders."""
    if family in DECODERS:
        return "causal_lm"
    if family in SEQ2SEQ:
        return "seq2seq"
    if family == "wav2vec2":
        return "ctc"
    return "image" if family in IMAGES else "sequence_classification"


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
    if family in IMAGES:
        _save_image_processor(family, folder)
    elif family == "wav2vec2":
        transformers.Wav2Vec2Processor(ears(), speller(folder)).save_pretrained(folder)
    else:
        tokenizer().save_pretrained(folder)
    if family == "whisper":
        transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder


def ears() -> Any:
    """Wav2Vec2's feature extractor: 16 kHz, with a mask."""
    return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)


def speller(folder: Path) -> Any:
    """A CTC tokenizer of small letters, whose vocabulary lies in `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    letters = [*NAMED.values(), "|", *"abcdefghijklmnopqrstuvwxyz'"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    return transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **NAMED)


def image(number: int, width: int = 20, height: int = 16) -> list[list[list[int]]]:
    """Rows of coloured points, another image for each number."""
    points = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(number))
    return points.tolist()


def sound(number: int, seconds: float, rate: int = 16_000) -> list[float]:
    """A tone in noise, another one for each number."""
    noise = torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(number))
    times = torch.arange(len(noise)) / rate
    return (0.3 * torch.sin(6.2832 * (200 + 40 * number) * times) + 0.05 * noise).tolist()


def save_image(path: Path, number: int, **size: int) -> str:
    """The image as a file (.png keeps every point); returns its name."""
    from PIL import Image

    array = torch.tensor(image(number, **size), dtype=torch.uint8).numpy()
    Image.fromarray(array).save(path)
    return str(path)


def save_sound(path: Path, number: int, seconds: float, rate: int = 16_000) -> str:
    """The sound as a file (a .wav of 16 bits); returns its name."""
    from soundfile import write

    write(path, torch.tensor(sound(number, seconds, rate)).numpy(), rate)
    return str(path)


def _save_image_processor(family: str, folder: Path) -> None:
    """Written by hand: making the object needs Pillow, which only the image task needs."""
    kind = {"vit": "ViT", "efficientnet": "EfficientNet"}.get(family, "ConvNext")
    side = 16 if family == "vit" else 32
    size = {"shortest_edge": side} if kind == "ConvNext" else {"height": side, "width": side}
    settings = {"image_processor_type": f"{kind}ImageProcessor", "do_resize": True, "do_normalize": True, "size": size}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings |= {"include_top": False} if kind == "EfficientNet" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
