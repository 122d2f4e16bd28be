"""From a run's folder to what can be deployed: verified in a real fresh process, or not there at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from peftkit.config.read import write
from peftkit.config.run import Run
from peftkit.engine.checkpoint import FORMAT
from peftkit.errors import CheckpointError, ConfigError, ExportError
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters import Merged
from peftkit.flows.export import export, export_trained, open_run, put_trained
from peftkit.run_folder import RunFolder
from peftkit.strategies import Lora, Strategy
from tests.tiny import save_tiny
from tests.trained import inputs_for, logits, shake


def run_of(folder: Path, family: str = "llama", **settings: Any) -> Run:
    """A run on a tiny model with rows of its own."""
    head = {} if family == "llama" else {"head": "base"}
    base = save_tiny(folder / "base", family, **head)
    is_llm = family == "llama"
    rows = [{"text": f"the row of number {n}", **({} if is_llm else {"label": "abc"[n % 3]})} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(folder / "rows.jsonl"), "holdout": 0.5, "cache": str(folder / "cache")}
    task = "causal_lm" if is_llm else "sequence_classification"
    out = str(folder / "run")
    return Run.model_validate(
        {"model": {"path": str(base)}, "task": task, "data": data, "out": out, "precision": "fp32", **settings}
    )


def trained_run(folder: Path, family: str = "llama", **settings: Any) -> tuple[RunFolder, Any]:
    """The folder that a training of this run would have left, and the trained model."""
    run = run_of(folder, family, **settings)
    found = RunFolder(folder / "run")
    found.path.mkdir()
    found.config.write_text(write(run))
    found.metrics.write_text('{"step": 7, "loss": 1.0}\n{"step": 7, "split": "validation", "loss": 1.5}\n')
    fitted, base, _ = open_run(run, {})
    model = shake(fitted.strategy.adapt(base.model, base.fresh))
    # A 16-bit engine keeps fp32 masters: values that 16 bits do not hold.
    weights = {name: p.detach().float() * 1.001 for name, p in model.named_parameters() if p.requires_grad}
    put_trained(model, weights)
    save_checkpoint(found.checkpoint(7), weights, base.fingerprint)
    return found, model


def save_checkpoint(folder: Path, weights: dict[str, torch.Tensor], fingerprint: str) -> None:
    """A whole checkpoint of one process; an export reads its trained weights alone."""
    folder.mkdir(parents=True)
    parts = {"trained": weights, "optimizer": {}, "process": {}}
    for kind, tensors in parts.items():
        copies = {key: value.contiguous().clone() for key, value in tensors.items()}
        save_file(copies, folder / f"{kind}-00001-of-00001.safetensors")
    (folder / "progress.json").write_text(json.dumps({"step": 7}))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    manifest = {"format": FORMAT, "step": 7, "processes": 1, "base": {"fingerprint": fingerprint}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, Any]]:
    """A run, with tokens added, and exported both ways."""
    folder = tmp_path_factory.mktemp("export")
    found, model = trained_run(folder, model={"path": str(folder / "base"), "add_tokens": ["<new>"]}, strategy="lora")
    export(found.path, to="merged")
    export(found.path, to="adapter", checkpoint="7")
    yield found, model


def test_the_merged_export_is_what_was_trained(exported: tuple[RunFolder, Any]) -> None:
    folder, model = exported
    place = folder.export("merged")
    again = AutoModelForCausalLM.from_pretrained(place)
    torch.testing.assert_close(logits(again, inputs_for("llama")), logits(model, inputs_for("llama")))
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert "<new>" in tokenizer.get_vocab()
    assert tokenizer.chat_template


def test_the_adapter_export_opens_with_plain_peft(exported: tuple[RunFolder, Any]) -> None:
    folder, model = exported
    base = AutoModelForCausalLM.from_pretrained(folder.path.parent / "base")
    base.resize_token_embeddings(model.get_input_embeddings().num_embeddings)
    again = PeftModel.from_pretrained(base, folder.export("adapter"))
    assert torch.equal(logits(again, inputs_for("llama")), logits(model, inputs_for("llama")))


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_its_certificate_and_card_lie_beside_the_weights(name: str, exported: tuple[RunFolder, Any]) -> None:
    folder, _ = exported
    certificate = Certificate.read(folder.export(name))
    assert (certificate.exporter, certificate.step, certificate.stored) == (name, 7, "float32")
    assert certificate.figures.relative_error < 1e-5
    assert certificate.figures.same_text == 1.0
    assert (certificate.rows, certificate.prompts) == (6, 4)
    assert certificate.positions > 20
    card = (folder.export(name) / "README.md").read_text()
    assert "| validation loss | 1.5 |" in card
    assert "license" not in card


def test_nothing_else_is_left(exported: tuple[RunFolder, Any]) -> None:
    folder, _ = exported
    assert {entry.name for entry in (folder.path / "export").iterdir()} == {"adapter", "merged"}


class Forgetful(Lora):
    """Merges without one adapter's matrix."""

    def merge(self, model: Any) -> Any:
        next(p for n, p in model.named_parameters() if "lora_B" in n).data.zero_()
        return super().merge(model)


class Vandal(Merged):
    """Leaves half of a file behind."""

    def write(self, model: Any, strategy: Strategy, folder: Path, *others: Any) -> None:
        super().write(model, strategy, folder, *others)
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("harm", ["merge", "file"])
def test_a_wrong_export_is_refused_and_the_old_one_stays(harm: str, tmp_path: Path) -> None:
    run, base, batches = open_run(run_of(tmp_path), {})
    run = run.model_copy(update={"strategy": Forgetful(rank=4) if harm == "merge" else Lora(rank=4)})
    model = shake(run.strategy.adapt(base.model, base.fresh))
    place = tmp_path / "run" / "export" / "merged"
    place.mkdir(parents=True)
    (place / "old").touch()
    exporter = Vandal() if harm == "file" else Merged()
    said = "cannot be opened or run" if harm == "file" else "not what was trained, and was removed: logits differ by"
    with pytest.raises(ExportError, match=said):
        export_trained(exporter, model, base.processor, run, batches, place, source=base.source)
    assert [entry.name for entry in place.parent.rglob("*")] == ["merged", "old"]


def test_a_classifier_of_four_bit_weights_can_be_handed_on_as_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found, model = trained_run(tmp_path, "distilbert", strategy={"name": "qlora", "rank": 4}, precision="bf16")
    place = export(found.path, to="adapter")
    assert Certificate.read(place).figures.relative_error == 0
    merged = model.base_model.model
    assert merged.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_only_adapters_can_be_exported_as_adapters(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text(write(Run.model_validate({"strategy": "full"})))
    with pytest.raises(ConfigError, match="--to adapter: --strategy full makes no adapter; export it with --to merged"):
        export(tmp_path, to="adapter")


@pytest.mark.parametrize(
    ("words", "problem", "said"),
    [
        ({"to": "merge"}, ConfigError, "did you mean 'merged'"),
        ({"checkpoint": "8"}, ConfigError, "--checkpoint 8: .* no such step; it has 7"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named(words: dict[str, str], problem: type[Exception], said: str, exported: Any) -> None:
    with pytest.raises(problem, match=said):
        export(exported[0].path, **words)


def test_a_folder_without_a_run_or_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run's folder"):
        export(tmp_path)
    RunFolder(tmp_path).config.write_text(write(Run()))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        export(tmp_path)


@pytest.mark.parametrize("harm", ["base", "weights", "file"])
def test_a_checkpoint_of_another_run_is_refused(harm: str, tmp_path: Path) -> None:
    folder, _ = trained_run(tmp_path, strategy={"name": "lora", "rank": 4})
    saved = folder.checkpoint(7)
    manifest = json.loads((saved / "manifest.json").read_text())
    if harm == "base":
        (saved / "manifest.json").write_text(json.dumps(manifest | {"base": {"fingerprint": "of another base"}}))
    elif harm == "weights":
        folder.config.write_text(folder.config.read_text().replace("rank: 4", "rank: 8"))
    else:
        next(saved.glob("trained*")).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"other weights|of another shape|is damaged"):
        export(folder.path)
    assert not (folder.path / "export").exists()


def test_a_full_training_is_exported_whole(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "bert", num_labels=3)
    run = run_of(tmp_path, "bert", strategy="full", model={"path": str(base)})
    run, found, batches = open_run(run, {})
    model = shake(run.strategy.adapt(found.model, found.fresh))
    expected = logits(model, inputs_for("bert"))
    export_trained(Merged(), model, found.processor, run, batches, tmp_path / "merged", source=found.source)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again, inputs_for("bert")), expected)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_strategy_from_the_settings_is_the_same_object_again() -> None:
    assert Strategy.model_validate(Lora(rank=4).model_dump(mode="json")) == Lora(rank=4)
