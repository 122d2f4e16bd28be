"""The tokenizer of a base model, with what the run changes in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.processor import load_processor, vocabulary
from tests.tiny import save_tiny, tokenizer


def test_the_models_own_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    read = load_processor(Model(path=str(folder)), str(folder))
    assert read("the capital of France")["input_ids"] == tokenizer()("the capital of France")["input_ids"]
    assert read.chat_template == tokenizer().chat_template


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    other = tokenizer()
    other.add_tokens(["<other>"])
    other.save_pretrained(tmp_path / "other")
    read = load_processor(Model(path=str(base), tokenizer=str(tmp_path / "other")), str(base))
    assert "<other>" in read.get_vocab()


def test_added_tokens_are_one_token_each(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    read = load_processor(Model(path=str(folder), add_tokens=["<drug>", "<dose>"]), str(folder))
    size = vocabulary(tokenizer())
    assert read("<dose><drug>", add_special_tokens=False)["input_ids"] == [size + 1, size]
    assert vocabulary(read) == size + 2


def test_a_template_file_replaces_the_template(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}{{ message['content'] }}!{% endfor %}")
    read = load_processor(Model(path=str(folder), chat_template=file), str(folder))
    assert read.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_a_missing_template_names_its_flag(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    with pytest.raises(ModelError, match=r"--model\.chat_template /no/such: No such file"):
        load_processor(Model(path=str(folder), chat_template=Path("/no/such")), str(folder))


@pytest.mark.parametrize(("missing", "padding"), [(["pad_token"], "</s>"), (["pad_token", "eos_token"], "<unk>")])
def test_a_token_that_is_there_fills_up_where_none_is_named(missing: list[str], padding: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({name: v for name, v in json.loads(file.read_text()).items() if name not in missing}))
    read = load_processor(Model(path=str(folder)), str(folder))
    assert read.pad_token == padding
    assert vocabulary(read) == vocabulary(tokenizer())


def test_no_tokenizer_at_all_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer that can be read .*--model\.tokenizer"):
        load_processor(Model(path=str(folder)), str(folder))
