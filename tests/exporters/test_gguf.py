"""The GGUF export: written from a run, certified and answered by llama.cpp, and opened by anyone who has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.cli.main import main
from peftkit.config.sections import Model
from peftkit.errors import ExportError, ModelError
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters import Gguf
from peftkit.exporters.base import Reading
from peftkit.exporters.llama_cpp.engine import Engine
from peftkit.flows.export import export
from peftkit.flows.trained import open_trained
from peftkit.models.find import find
from peftkit.run_folder import RunFolder
from peftkit.strategies import Full
from peftkit.tasks import Task
from tests.flows.test_export import trained_run
from tests.tiny import config
from tests.trained import inputs_for, logits

ROWS = [{"prompt": f"What is {number} and one?", "response": f"It is {number + 1}."} for number in range(12)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Any]:
    """A run of chats, with a token added; its GGUF in fp32, and merged."""
    folder = tmp_path_factory.mktemp("gguf")
    settings = {
        "model": {"path": str(folder / "base"), "add_tokens": ["<new>"]},
        "strategy": {"name": "lora", "rank": 4},
    }
    rows = folder / "chats.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"train": str(rows), "holdout": 0.5, "cache": str(folder / "cache")}
    found, model = trained_run(folder, task="chat", data=data, **settings)
    export(found.path, to=Gguf(outtype="f32"))
    export(found.path, to="merged")
    return found, model


def test_it_is_what_was_trained(exported: tuple[RunFolder, Any]) -> None:
    folder, model = exported
    place = folder.export("gguf")
    there = open_trained(place).model
    assert type(there).__name__ == "LlamaCpp"
    torch.testing.assert_close(
        logits(there, inputs_for("llama")), logits(model, inputs_for("llama")), atol=1e-4, rtol=1e-4
    )
    certificate = Certificate.read(place)
    assert (certificate.exporter, certificate.stored, certificate.figures.same_text) == ("gguf", "f32", 1.0)
    assert certificate.figures.relative_error < 1e-5
    assert {"model.gguf", "Modelfile", "tokenizer.json"} <= certificate.files.keys()


def test_it_predicts_and_scores_as_the_merged_model(exported: tuple[RunFolder, Any], tmp_path: Path) -> None:
    folder, _ = exported
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    said = {}
    for name in ("gguf", "merged"):
        out = tmp_path / f"{name}.jsonl"
        words = [str(folder.export(name)), str(rows), "--out", str(out), "--batch", "3", "--max-new-tokens", "8"]
        assert main(["predict", *words]) == 0
        said[name] = out.read_text()
    assert said["gguf"] == said["merged"]
    assert len({json.loads(line)["generated"] for line in said["gguf"].splitlines()}) > 1


def test_llama_cpp_reads_a_conversation_as_it_was_trained_on(exported: tuple[RunFolder, Any]) -> None:
    place = exported[0].export("gguf")
    words = AutoTokenizer.from_pretrained(place)
    talk = [{"role": "user", "content": "What is <new>?"}]
    text = words.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    with Engine(place / "model.gguf", words_only=True) as engine:
        assert engine.tokenise(text) == words.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert '{{ "<|user|>" }}{{ .Content }}{{ "</s>" }}' in (place / "Modelfile").read_text()


def test_a_training_can_begin_from_it(exported: tuple[RunFolder, Any], tmp_path: Path) -> None:
    folder, model = exported
    again = AutoModelForCausalLM.from_pretrained(find(Model(path=str(folder.export("gguf"))), tmp_path))
    torch.testing.assert_close(
        logits(again, inputs_for("llama")), logits(model, inputs_for("llama")), atol=1e-4, rtol=1e-4
    )


def test_a_damaged_file_is_one_message(exported: tuple[RunFolder, Any], tmp_path: Path) -> None:
    place = exported[0].export("gguf")
    for path in place.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.gguf").write_bytes((place / "model.gguf").read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"model.gguf: llama.cpp cannot read it"):
        open_trained(tmp_path)
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(ExportError, match=r"has no model.gguf"):
        Gguf().open(tmp_path, Reading("AutoModelForCausalLM", "b"))


def test_the_model_card_opens_it(exported: tuple[RunFolder, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    place = exported[0].export("gguf")
    monkeypatch.chdir(place.parent)
    card = (place / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code
    exec(code[1].replace("n_ctx=0", "n_ctx=0, verbose=False"), {"print": lambda said: None})  # noqa: S102


@pytest.mark.parametrize(
    ("family", "task", "why"),
    [
        ("bert", "sequence_classification", "llama.cpp writes text, and --task sequence_classification is answered by"),
        ("t5", "seq2seq", "llama.cpp writes text, and --task seq2seq"),
        ("llama", "reward", "llama.cpp writes text, and --task reward"),
        ("llama", "preference", "^$"), ("gpt2", "chat", "^$"), ("gemma", "causal_lm", "^$"),
    ],
)  # fmt: skip
def test_it_says_what_it_does_not_serve(family: str, task: str, why: str) -> None:
    said = Gguf().refuses(Task.model_validate(task), config(family), Full())
    assert re.search(why, said), said
