"""llama.cpp makes the same tokens as the tokenizer that the model was trained with, or the export is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftkit.errors import ExportError
from peftkit.exporters.llama_cpp.engine import Engine
from peftkit.exporters.llama_cpp.vocabulary import TEXTS, Vocabulary, vocabulary
from tests.tiny import BOS, EOS, NAMED, PAD, TEXT, TOKENS, VOCABULARY, tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def bytes_by(cut: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts texts in another way, trained where the way matters."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = cut
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*TEXT, *TEXTS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **NAMED)


def level(*before: Any, regex: bool = True) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)])


def split(pattern: str) -> Any:
    return level(pre_tokenizers.Split(Regex(pattern), "isolated"), regex=False)


def sentence_pieces(prefix: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's or Gemma's: characters merged, a space for a bar, what is unknown as bytes."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    spelt = [f"<0x{number:02X}>" for number in range(256)]
    bar = normalizers.Replace(" ", "▁")
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), bar]) if prefix else bar
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *spelt], show_progress=False)
    bpe.train_from_iterator(TEXT * 3, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **NAMED)


def rows_of(words: Any) -> int:
    return max(words.get_vocab().values()) + 1


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (level(), "gpt-2"),
        (level(pre_tokenizers.Digits(individual_digits=True)), "smollm"),
        (split(LLAMA_3), "llama-bpe"),
        (split(QWEN), "qwen2"),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "qwen2"],
)
def test_the_way_to_cut_a_text_is_found(cut: Any, name: str) -> None:
    words = bytes_by(cut)
    assert vocabulary(words, rows_of(words), {EOS}).cut == name


def test_a_way_that_llama_cpp_does_not_know_is_refused() -> None:
    words = bytes_by(split(r"[aeiou]+|[^aeiou]+"))
    with pytest.raises(ExportError, match=r"llama.cpp makes other tokens than the model's tokenizer, for example of "):
        vocabulary(words, rows_of(words), {EOS})


def test_what_merges_nothing_is_refused() -> None:
    whole = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))  # noqa: S106
    words = PreTrainedTokenizerFast(tokenizer_object=whole)
    with pytest.raises(ExportError, match=r"its tokenizer merges nothing \(WordLevel\)"):
        vocabulary(words, 2, set())


def test_the_tiny_tokenizer_with_tokens_added(tmp_path: Path) -> None:
    words = tokenizer()
    words.add_tokens(["<new>", " spaced"])
    words.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    held = vocabulary(words, VOCABULARY, {EOS, BOS})
    assert held.special == {"bos": BOS, "eos": EOS, "unk": 0, "pad": PAD, "eot": BOS}
    assert (held.begins, held.ends, held.template) == (False, False, words.chat_template)
    kinds = {word: TokenType(kind).name for word, kind in zip(held.words, held.kinds, strict=True)}
    assert (kinds["<new>"], kinds["<|tool|>"], kinds["a"]) == ("USER_DEFINED", "CONTROL", "NORMAL")
    assert (kinds["[PAD319]"], held.words[rows_of(words)]) == ("UNUSED", f"[PAD{rows_of(words)}]")
    with Engine(file_of(held, tmp_path), words_only=True) as engine:
        text = "a <new>b<|tool|>  spaced</s>"
        assert engine.tokenise(text) == words(text)["input_ids"]


def file_of(held: Vocabulary, folder: Path) -> Path:
    writer = GGUFWriter(folder / "words.gguf", "llama")
    held.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return folder / "words.gguf"


@pytest.mark.parametrize("prefix", [False, True])
def test_merged_characters(prefix: bool, tmp_path: Path) -> None:
    words = sentence_pieces(prefix)
    held = vocabulary(words, rows_of(words) + 3, {EOS})
    assert (held.model, held.spaced, held.begins) == ("llama", prefix, True)
    assert held.kinds[0] == TokenType.UNKNOWN
    text = "What is the capital 首都?"
    with Engine(file_of(held, tmp_path), words_only=True) as engine:
        assert engine.tokenise(text, special=True) == words(text)["input_ids"]
        assert engine.tokenise(text, special=True)[0] == BOS
    with Engine(file_of(replace(held, spaced=not prefix), tmp_path), words_only=True) as engine:
        assert engine.tokenise(text) != words(text, add_special_tokens=False)["input_ids"]
