"""What transformers 4 would look for is there, and transformers 5 reads the same as before."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from peftkit.exporters.older import older_config, tell_older_readers
from tests.tiny import save_tiny


def test_older_names_are_added_and_nothing_changes_for_newer_readers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama")
    held = json.loads((folder / "config.json").read_text())
    held["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0}
    (folder / "config.json").write_text(json.dumps(held))
    before, words = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tell_older_readers(folder)
    after, again = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert after.to_dict() == before.to_dict()
    assert after.rope_parameters["rope_theta"] == 50000.0
    assert (again.chat_template, again("one two").input_ids) == (words.chat_template, words("one two").input_ids)
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert (config["torch_dtype"], config["rope_theta"]) == ("float32", 50000.0)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert tokenizer["chat_template"] == words.chat_template
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    written = (folder / "config.json").read_bytes()
    tell_older_readers(folder)
    assert (folder / "config.json").read_bytes() == written


def test_what_is_said_already_stays() -> None:
    held = {"dtype": "bfloat16", "torch_dtype": "float16", "rope_parameters": {"full": {"rope_theta": 1.0}}}
    assert older_config(held) == held
    assert older_config({"model_type": "bert"}) == {"model_type": "bert"}


def test_a_folder_without_them_is_left(tmp_path: Path) -> None:
    tell_older_readers(tmp_path)
    assert not list(tmp_path.iterdir())
