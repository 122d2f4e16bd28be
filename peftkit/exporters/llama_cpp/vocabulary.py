"""A tokenizer as llama.cpp has it, found out by asking llama.cpp: the file's words give the ids that the model was trained on.

How a text is cut before its pieces are merged is in a GGUF file only a name, of which llama.cpp knows what it means; a wrong one
gives other tokens for some texts, and nobody is told. So each name that may be meant is put into a file without weights, which
llama.cpp opens, and the one is taken with which it cuts difficult texts as the tokenizer does. If none does, the export is refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGUFWriter, TokenType

from peftkit.errors import ExportError
from peftkit.exporters.llama_cpp.engine import Engine

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
"""llama.cpp's names for merges of bytes, by rank, and of characters, by score, where unknown ones fall apart into bytes."""

CUTS = (
    *(
        "gpt-2",
        "smollm",
        "qwen2",
        "llama-bpe",
        "qwen35",
        "tekken",
        "gpt-4o",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
    ),
    *(
        "starcoder",
        "olmo",
        "dbrx",
        "stablelm2",
        "falcon",
        "mpt",
        "command-r",
        "chatglm-bpe",
        "exaone",
        "superbpe",
        "default",
    ),
)
"""llama.cpp's names of ways to cut a text, those of the models that are trained most first. llama-bpe also takes a piece that is a
word as it is, which makes no difference to most vocabularies: the ways without that come before it."""

TEXTS = (
    "Hello, world! It's 3.14159, isn't it? I'LL SAY they've WE'RE gone; he'd know 1234567890 12,345.67 things.",
    "  two spaces   three\ttab\n\nnew lines \n  indented\r\nwindows \n \n\n\n end  ",
    "def f(x_1, *args):\n    return {'a': [1, 22, 333], \"b\": x_1 ** 2} != None  # why?\n\tif x<=y&&z: pass",
    "naïve café Ångström übergrößenträger façade ŒUVRE ß ẞ İstanbul ıĞ",
    "Привет, мир! Ελληνικά κείμενο, עברית ועוד, العربية ١٢٣, हिन्दी पाठ, ภาษาไทย",
    "日本語のテキスト、中文文本。한국어 텍스트 １２３ ｆｕｌｌ",
    "🙂👍🏽👨‍👩‍👧‍👦🇫🇷 ½ ² Ⅷ ∑∫√ → ≠ £€¥ ™ © … – — ‘quotes’ “too” «et»",
    "a\u00a0b\u200bc\u2003d\u3000e\ufeff \x7f ... !!! ??? --- *** ///",
    "https://example.org/a?b=c&d=%20#e user@mail.net C:\\path\\file.txt $12 50% <b>bold</b> &amp; \\n",
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case 0x1F 1e-5 v2.0.1 ０ ٣ iPhone15Pro",
    " leading", "trailing ", "\n", " ", "   ", "a", "ſ 'ſ 'S 's 'T ’s",
)  # fmt: skip
"""What tokenizers cut in different ways. Some bring a text into Unicode's composed form first, which llama.cpp does not: all
of these are in it already."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a file, and how a text becomes their numbers."""

    model: str
    words: list[str]
    kinds: list[int]
    """gguf.TokenType of each."""
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    cut: str = "default"
    spaced: bool | None = None
    """Whether a text gets a space in front (SENTENCE_PIECE)."""
    special: dict[str, int] = field(default_factory=dict)
    """bos, eos, unk, pad, eot, eom -> id"""
    begins: bool = False
    """Whether every text begins with bos."""
    ends: bool = False
    template: str | None = None
    """The chat template."""

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.words)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.spaced is not None:
            writer.add_add_space_prefix(self.spaced)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.begins)
        writer.add_add_eos_token(self.ends)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary(tokenizer: Any, rows: int, ends: set[int]) -> Vocabulary:
    """The vocabulary for a model with so many `rows` of embeddings, which `ends` of its tokens end a text.

    Raises ExportError if llama.cpp makes other tokens of some text.
    """
    drafts = list(candidates(tokenizer, rows, ends))
    texts = [unicodedata.normalize("NFC", text) for text in [*TEXTS, *with_added(tokenizer)]]
    expected = [(ids(tokenizer, text, False), ids(tokenizer, text, True)) for text in texts]
    best, said = -1, ""
    for draft in drafts:
        right, text = agreement(draft, texts, expected)
        if right == len(texts):
            return draft
        if right > best:
            best, said = right, text
    raise ExportError(
        f"llama.cpp makes other tokens than the model's tokenizer, for example of {said!r}; it would be fed nonsense"
    )


def ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return found


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, by the model's own settings and by the tokenizer's."""
    named = model.generation_config.eos_token_id
    known = named if isinstance(named, list) else [named]
    return {number for number in [*known, tokenizer.eos_token_id] if number is not None}


def agreement(draft: Vocabulary, texts: list[str], expected: list[tuple[list[int], list[int]]]) -> tuple[int, str]:
    """How many of the texts become the expected tokens, and the first that does not."""
    with TemporaryDirectory(prefix="peftkit-words-") as folder:
        file = Path(folder) / "words.gguf"
        writer = GGUFWriter(file, "llama")
        draft.write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with Engine(file, words_only=True) as engine:
            wrong = [
                text
                for text, (plain, whole) in zip(texts, expected, strict=True)
                if engine.tokenise(text) != plain or engine.tokenise(text, special=True) != whole
            ]
    return len(texts) - len(wrong), wrong[0] if wrong else ""


def with_added(tokenizer: Any) -> Iterator[str]:
    """Texts with tokens that were added to the vocabulary in them, and a conversation."""
    for word in list(tokenizer.get_added_vocab())[:48]:
        yield f"before {word}after {word} {word}{word}\n{word}"
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It's 4."}]
        yield tokenizer.apply_chat_template(turns, tokenize=False)


def candidates(tokenizer: Any, rows: int, ends: set[int]) -> Iterator[Vocabulary]:
    """The vocabularies that may be meant. ExportError for a tokenizer that is none of llama.cpp's kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    made = json.loads(backend.to_str()) if backend is not None else {"model": {"type": type(tokenizer).__name__}}
    model = made["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"its tokenizer merges nothing ({model['type']}); llama.cpp's language models have byte pair encoding"
        )
    words, kinds = listed(tokenizer, rows)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    begins, closes = frame(tokenizer)
    held = Vocabulary(
        BYTE_LEVEL, words, kinds, merges=merges, special=specials(tokenizer, ends), begins=begins, ends=closes,
        template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )  # fmt: skip
    if not model.get("byte_fallback"):
        yield from (replace(held, cut=cut) for cut in CUTS)
        return
    held = replace(
        held,
        model=SENTENCE_PIECE,
        merges=[],
        scores=scored(words, merges),
        kinds=as_sentence_piece(words, kinds, tokenizer),
    )
    spaces = [
        word.replace("▁", " ") if kind == TokenType.USER_DEFINED else word
        for word, kind in zip(words, held.kinds, strict=True)
    ]
    yield from (replace(held, words=spaces, spaced=spaced) for spaced in (False, True))


def listed(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """Word and kind of each id; the model's rows that no word has are unused."""
    words, kinds = [f"[PAD{number}]" for number in range(rows)], [int(TokenType.UNUSED)] * rows
    for word, number in tokenizer.get_vocab().items():
        if number < rows:
            words[number], kinds[number] = word, int(TokenType.NORMAL)
    for number, added in tokenizer.added_tokens_decoder.items():
        if number < rows:
            words[number] = added.content
            kinds[number] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return words, kinds


def as_sentence_piece(words: list[str], kinds: list[int], tokenizer: Any) -> list[int]:
    """The same with the kinds of bytes and of the unknown word."""
    found = [
        int(TokenType.BYTE) if kind == TokenType.NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", word) else kind
        for word, kind in zip(words, kinds, strict=True)
    ]
    if tokenizer.unk_token_id is not None:
        found[tokenizer.unk_token_id] = int(TokenType.UNKNOWN)
    return found


def scored(words: list[str], merges: list[str]) -> list[float]:
    """A score for each word: the earlier a merge makes it, the higher."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), rank)
    return [float(-first.get(word, len(merges))) for word in words]


def specials(tokenizer: Any, ends: set[int]) -> dict[str, int]:
    """The special tokens by llama.cpp's names; what ends a text beside eos is its eot and eom."""
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    others = sorted(ends - {named["eos"]})
    named |= dict(zip(("eot", "eom"), others, strict=False))
    return {name: number for name, number in named.items() if number is not None}


def frame(tokenizer: Any) -> tuple[bool, bool]:
    """Whether every text begins with bos, and ends with eos."""
    whole, plain = ids(tokenizer, "a", True), ids(tokenizer, "a", False)
    begins = whole[:1] == [tokenizer.bos_token_id] and plain[:1] != whole[:1]
    return begins, whole[-1:] == [tokenizer.eos_token_id] and plain[-1:] != whole[-1:]
