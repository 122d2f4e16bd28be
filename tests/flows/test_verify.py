"""An export that was harmed in any way, or whose base is another, is not verified: by its hashes, and by its answers alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.cli.main import main
from peftkit.errors import ConfigError
from peftkit.evaluation.certificate import CARD, CERTIFICATE, Certificate, files_of
from peftkit.exporters import Exporter
from peftkit.flows.export import export
from peftkit.flows.verify import Asked, Verdict, verify
from peftkit.run_folder import RunFolder
from tests.flows.test_export import trained_run
from tests.fresh import in_this_process
from tests.tiny import save_tiny

Harm = Callable[[Path], None]


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, here: None) -> RunFolder:
    """A trained run, exported as an adapter and as a model in shards."""
    found, _ = trained_run(tmp_path_factory.mktemp("verify"), strategy={"name": "lora", "rank": 4})
    export(found.path, to="adapter")
    export(found.path, to=exporter({"name": "merged", "max_shard_size": "60KB"}))
    assert len(shards(found.export("merged"))) > 2
    return found


def exporter(settings: dict[str, Any]) -> Exporter:
    found: Exporter = Exporter.model_validate(settings)
    return found


@pytest.fixture
def copy(run: RunFolder, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export, far from the run."""
    return lambda name: Path(shutil.copytree(run.export(name), tmp_path / name))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def looked_at(folder: Path, **asked: Any) -> Verdict:
    return verify(folder, Asked(**asked))


def forge(folder: Path) -> None:
    """A certificate that speaks of the files as they are now: only their answers can tell."""
    Certificate.load(folder).model_copy(update={"files": files_of(folder)}).write(folder)


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_a_copy_is_verified_without_the_run(name: str, copy: Callable[[str], Path]) -> None:
    verdict = looked_at(copy(name))
    assert verdict.problems == []
    found = {check.name: check.found for check in verdict.checks}
    assert found["answers differ by"].startswith(("0 ", "1", "2", "3", "4", "5", "6", "7", "8", "9"))
    assert float(found["answers differ by"].split()[0]) < 1e-5
    assert found["writes the same words"] == "yes"


def test_its_probe_holds_no_row(run: RunFolder, copy: Callable[[str], Path]) -> None:
    """The same probe, whatever the rows: it is made from the vocabulary."""
    held = Certificate.load(copy("merged")).probe
    assert held is not None
    assert set(held.inputs) == {"input_ids", "attention_mask"}
    assert {how["draw"] for how in held.inputs.values()} == {"ids", "ones"}


# Files


def flip(file: Path, at: int) -> None:
    held = bytearray(file.read_bytes())
    held[at] ^= 0x10
    file.write_bytes(bytes(held))


def swap(folder: Path) -> None:
    one, other = shards(folder)[:2]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def change(file: Path, alter: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(alter(load_file(file)), file, metadata={"format": "pt"})


def rename(folder: Path) -> None:
    change(shards(folder)[0], lambda held: {f"other.{name}": value for name, value in held.items()})


def holding(folder: Path, part: str) -> Path:
    return next(file for file in shards(folder) if any(part in name for name in load_file(file)))


def drop(part: str) -> Harm:
    def harm(folder: Path) -> None:
        change(holding(folder, part), lambda held: {name: value for name, value in held.items() if part not in name})

    return harm


def spoil(part: str, alter: Callable[[torch.Tensor], torch.Tensor]) -> Harm:
    def harm(folder: Path) -> None:
        file = holding(folder, part)
        change(file, lambda held: {name: alter(value) if part in name else value for name, value in held.items()})

    return harm


def nan(weight: torch.Tensor) -> torch.Tensor:
    weight.flatten()[3] = torch.nan
    return weight


def edit(name: str, old: str, new: str) -> Harm:
    def harm(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return harm


def lift_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 100
    (folder / "config.json").write_text(json.dumps(config))


def rescale(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] *= 0.9
    (folder / "adapter_config.json").write_text(json.dumps(config))


HARMS: dict[str, tuple[str, Harm, str]] = {
    "header": ("merged", lambda folder: flip(shards(folder)[0], 12), "00001-of"),
    "data": ("merged", lambda folder: flip(shards(folder)[1], -5), "00002-of"),
    "cut": ("merged", lambda folder: shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:-9]) and None, "00001-of"),
    "swapped": ("merged", swap, "00001-of"),
    "renamed": ("merged", rename, "00001-of"),
    "gone": ("merged", lambda folder: shards(folder)[0].unlink(), "00001-of.* is missing"),
    "head": ("merged", drop("embed_tokens"), r"safetensors changed"),
    "nan": ("merged", spoil("down_proj", nan), r"safetensors changed"),
    "rope": ("merged", lift_rope, "config.json changed"),
    "tokenizer": ("merged", edit("tokenizer.json", "model", "modle"), "tokenizer.json changed"),
    "template": ("merged", edit("chat_template.jinja", "content", "role"), "chat_template.jinja changed"),
    "extra": ("merged", lambda folder: (folder / "model.bin").write_bytes(b"") and None, "model.bin was not there"),
    "manual": ("merged", edit("peftkit.json", "AutoModelForCausalLM", "AutoModel"), "peftkit.json changed"),
    "figures": ("merged", edit(CERTIFICATE, '"kl": ', '"kl": 1'), "was edited"),
    "certificate": ("merged", lambda folder: (folder / CERTIFICATE).unlink(), "no readable certificate"),
    "scaling": ("adapter", rescale, "adapter_config.json changed"),
    "tensor": ("adapter", drop("layers.1.mlp.up_proj.lora_B"), "adapter_model.safetensors changed"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_was_harmed_is_named(harm: str, copy: Callable[[str], Path]) -> None:
    name, do, said = HARMS[harm]
    folder = copy(name)
    do(folder)
    (problem, *others) = looked_at(folder).problems
    assert len(others) == (harm == "swapped")
    assert re.search(said, problem)


def test_shards_of_another_export_are_refused(run: RunFolder, copy: Callable[[str], Path], tmp_path: Path) -> None:
    other, _ = trained_run(tmp_path, strategy={"name": "lora", "rank": 2})
    whole = export(other.path, to=exporter({"name": "merged", "max_shard_size": "60KB"}))
    folder = copy("merged")
    shutil.copy(holding(whole, "down_proj"), holding(folder, "down_proj"))
    assert "changed since" in looked_at(folder).problems[0]


def test_the_card_may_be_written_into(copy: Callable[[str], Path]) -> None:
    folder = copy("adapter")
    (folder / CARD).write_text("Better words.")
    assert looked_at(folder).ok


# Answers: what is left where the hashes were made to fit


FORGED: dict[str, tuple[str, Harm, str]] = {
    "nan": ("merged", spoil("down_proj", nan), "differ from the trained model's by nan"),
    "rope": ("merged", lift_rope, "differ from the trained model's by"),
    "weight": ("merged", spoil("layers.1.self_attn.v_proj", lambda weight: weight * 0.9), "differ from the trained model's"),
    "renamed": ("merged", rename, "cannot be opened"),
    "head": ("merged", drop("embed_tokens"), "cannot be opened"),
    "scaling": ("adapter", HARMS["scaling"][1], "differ from the trained model's"),
    "tensor": ("adapter", HARMS["tensor"][1], "differ from the trained model's"),
}  # fmt: skip


@pytest.mark.parametrize("harm", FORGED)
def test_its_answers_tell_what_hashes_were_made_to_hide(harm: str, copy: Callable[[str], Path]) -> None:
    name, do, said = FORGED[harm]
    folder = copy(name)
    do(folder)
    forge(folder)
    problems = looked_at(folder).problems
    assert any(said in problem for problem in problems), problems


# The base


def test_an_adapter_is_verified_on_its_own_base_wherever_it_lies(
    run: RunFolder, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(run.path.parent / "base", tmp_path / "moved"))
    verdict = looked_at(copy("adapter"), base=str(moved), full=True)
    assert verdict.problems == []
    assert any(check.name == "base" and check.found == str(moved) for check in verdict.checks)


@pytest.mark.parametrize("harm", ["weights", "config", "gone"])
def test_another_base_is_refused(harm: str, run: RunFolder, copy: Callable[[str], Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run.path.parent / "base", tmp_path / "moved"))
    if harm == "weights":  # the same shapes
        shutil.rmtree(moved)
        torch.manual_seed(5)
        save_tiny(moved, "llama")
        change(moved / "model.safetensors", lambda held: {name: value + 0.01 for name, value in held.items()})
    elif harm == "config":
        lift_rope(moved)
    else:
        shutil.rmtree(moved)
    (problem,) = looked_at(copy("adapter"), base=str(moved)).problems
    said = {
        "weights": "not the one that it was trained on: model.safetensors differs",
        "config": "not the one that it was trained on: config.json differs",
        "gone": "name it with --base",
    }
    assert said[harm] in problem


# The command


def test_the_command(copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy("merged")
    assert main(["verify", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["certificate"]["digest"] == Certificate.load(folder).digest
    flip(shards(folder)[0], -5)
    assert main(["verify", str(folder)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "changed since the export was verified" in out
    assert "NOT VERIFIED" in out


def test_what_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="that is no export"):
        looked_at(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        looked_at(tmp_path / "nowhere")


def test_it_can_be_scored_on_rows_of_ones_own(run: RunFolder, copy: Callable[[str], Path]) -> None:
    verdict = looked_at(copy("merged"), rows=str(run.path.parent / "rows.jsonl"))
    assert verdict.ok
    assert {"loss", "perplexity"} <= {check.name for check in verdict.checks}


# Kept by force


def test_one_that_was_forced_is_marked_everywhere(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "forced"
    words = [
        "export",
        str(run.path),
        "--to",
        "merged",
        "--to.dtype",
        "bfloat16",
        "--max_kl",
        "1e-12",
        "--out",
        str(place),
    ]
    assert main(words) == 1
    assert "KL divergence" in capsys.readouterr().err
    assert not place.exists()
    assert main([*words, "--force"]) == 0
    assert "KEPT BY --force" in " ".join(capsys.readouterr().out.split())
    held = Certificate.read(place)
    assert held.forced
    assert "KL divergence" in held.missed[0]
    assert held.asked_limits == {"max_kl": 1e-12}
    assert held.settings["dtype"] == "bfloat16"
    assert "This export is not the model that was trained" in (place / CARD).read_text()
    assert "kept by --force although KL divergence" in looked_at(place).problems[0]
    assert looked_at(place, accept_forced=True).ok
