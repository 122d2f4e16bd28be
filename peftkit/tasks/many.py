"""Many texts to a tokenizer at once: the ids that it gives each by itself, without Python's work for every one of them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Text = str | tuple[str, str]


def takes_many(tokenizer: Any) -> bool:
    """Whether its own calls do no more than ask the library `tokenizers`, so that it may be asked directly."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    base, kind = PreTrainedTokenizerFast, type(tokenizer)
    return (
        isinstance(tokenizer, base)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind.apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        and all(getattr(kind, name) is getattr(base, name) for name in ("_encode_plus", "_convert_encoding"))
    )


def encode_many(
    tokenizer: Any, texts: Sequence[Text], special: bool = True, max_length: int | None = None, offsets: bool = False
) -> list[Any]:
    """The encodings of texts, or of pairs; `special` adds the tokens around a text, `max_length` cuts as `truncation=True`."""
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils import PaddingStrategy

    cut = TruncationStrategy.DO_NOT_TRUNCATE if max_length is None else TruncationStrategy.LONGEST_FIRST
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, cut, max_length, 0, None, None)
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    encodings: list[Any] = encode(texts, add_special_tokens=special)
    return encodings


def ids_of(encodings: Sequence[Any], kind: str = "ids") -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All ids (or `type_ids`) one behind the other, and where each text's begin, with the end behind them."""
    import numpy as np

    lists = [getattr(encoding, kind) for encoding in encodings]
    starts = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in lists], out=starts[1:])
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(starts[-1])), starts


def utf8(text: str) -> bool:
    """Whether it can be encoded at all: half a surrogate pair cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def is_plain(value: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(value, str) and value != "" and utf8(value)


@dataclass(frozen=True)
class TokenBytes:
    """How many bytes of a text each token stands for, in a tokenizer whose tokens are nothing but the text's bytes.

    Where these add up, they say where each token begins and ends, which `tokenizers` need not keep account of. `leading` and
    `trailing` are the spaces that the tokenizer leaves out of a token's place.
    """

    size: NDArray[np.int64]
    leading: NDArray[np.int64]
    trailing: NDArray[np.int64]
    keeps_first: bool
    """Whether one such space stays in the place of a text's first token."""
    composes: bool
    """Whether texts are brought into Unicode's composed form (NFC) first."""

    def places(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last+1 byte of each token as the tokenizer would say them, from where each ends with all its bytes."""
        import numpy as np

        leading = self.leading[ids]
        if self.keeps_first:
            first = starts[:-1][np.diff(starts) > 0]
            leading[first] = np.maximum(leading[first] - 1, 0)
        left = np.minimum(ends - self.size[ids] + leading, ends)
        return left, np.maximum(ends - self.trailing[ids], left)

    def exact(self, text: str) -> bool:
        """Whether the text reaches the tokens as it is."""
        return not self.composes or text.isascii() or unicodedata.is_normalized("NFC", text)


def token_bytes(tokenizer: Any) -> TokenBytes | None:
    """None for a tokenizer that is not of that kind (WordPiece, Unigram, prefixes of spaces, ...)."""
    import numpy as np

    backend = tokenizer.backend_tokenizer
    normal, splits, after = (
        None if part is None else json.loads(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    )
    if (normal or {}).get("type") not in (None, "NFC") or not _is_byte_bpe(backend.model) or not _keeps_bytes(splits):
        return None
    added = {token: text.content for token, text in backend.get_added_tokens_decoder().items()}
    vocabulary = {token: text for text, token in backend.get_vocab(with_added_tokens=False).items()}
    count = max({**vocabulary, **added}, default=-1) + 1
    size, leading, trailing = (np.zeros(count, dtype=np.int64) for _ in range(3))
    trims = _trims(after)
    keeps_first = any(part.get("add_prefix_space") for part in trims)
    for token, text in {**vocabulary, **added}.items():
        size[token] = len(text.encode()) if token in added else len(text)
        if trims and (_blank(text[:1]) or _blank(text[-1:])):
            leading[token] = next((at for at, letter in enumerate(text) if not _blank(letter)), len(text))
            trailing[token] = next((at for at, letter in enumerate(reversed(text)) if not _blank(letter)), len(text))
    return TokenBytes(size, leading, trailing, keeps_first, normal is not None)


def _is_byte_bpe(model: Any) -> bool:
    names = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return type(model).__name__ == "BPE" and not model.byte_fallback and not any(getattr(model, one) for one in names)


def _keeps_bytes(splits: Any) -> bool:
    """Whether a text is cut into pieces without a loss, and these into bytes."""
    parts = (splits or {}).get("pretokenizers", [splits] if splits else [])
    return any(part["type"] == "ByteLevel" for part in parts) and all(
        part["type"] == "Digits"
        or (part["type"] == "ByteLevel" and not part["add_prefix_space"])
        or (part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed")
        for part in parts
    )


def _trims(after: Any) -> list[Any]:
    """What leaves spaces out of the tokens' places."""
    parts = (after or {}).get("processors", [after] if after else [])
    return [part for part in parts if part.get("trim_offsets")]


def _blank(letter: str) -> bool:
    """A space, as byte-level tokens spell it or as it is."""
    return letter == "\u0120" or letter.isspace()
