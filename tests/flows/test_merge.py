"""`peftkit merge`, as its user meets it: what lies in the folder, what is said, and that half a merge is no model."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from peftkit.cli.main import main
from peftkit.errors import DiskError
from peftkit.flows.merge import merge
from tests.merging.made import assert_same, merged_by_peft, opened, two_adapters, weights
from tests.mounts import small_disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_adapters(tmp_path_factory.mktemp("merge"))


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command's exit code, and all that it says."""

    def run(*words: str | Path) -> tuple[int, str]:
        code = main(["merge", *map(str, words)])
        told = capfd.readouterr()
        return code, told.out + told.err

    return run


def test_the_folder_is_an_ordinary_model(made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]) -> None:
    out = tmp_path / "out"
    code, told = said(
        "--base", made / "base", "--adapter", made / "adapter", "--out", out, "--max_shard_size", "50KB", "--dtype", "bfloat16"
    )  # fmt: skip
    assert code == 0
    assert "14 tensors change, 7 stay as they are" in told
    model = assert_same(out, merged_by_peft(opened(made / "base"), [made / "adapter"]).to(torch.bfloat16))
    assert model.dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(list(out.glob("model-*.safetensors"))) > 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(made / "base").chat_template
    assert (out / "generation_config.json").is_file()
    held = json.loads((out / "merge.json").read_text())
    file = made / "adapter" / "adapter_model.safetensors"
    assert held["adapters"][0]["sha256"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(held["base"]["sha256"]) == len(list((made / "base").glob("model-*.safetensors")))
    assert held["changed"] == 14


def test_the_adapters_own_tokenizer_goes_with_it(made: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(made / "adapter", adapter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "base")
    tokenizer.chat_template = "{{ messages }} of the adapter"
    tokenizer.save_pretrained(adapter)
    merge(None, [adapter], tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_link_out_of_the_adapters_folder_is_not_followed(
    made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(made / "adapter", adapter)
    shutil.copy(made / "base" / "tokenizer_config.json", adapter)
    (tmp_path / "secret").write_text("mine")
    (adapter / "tokenizer.json").symlink_to(tmp_path / "secret")
    code, told = said("--base", made / "base", "--adapter", adapter, "--out", tmp_path / "out")
    assert (code, "is a link to" in told) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [None, "", 3])
def test_without_a_base_the_adapter_must_name_one(
    named: Any, made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(made / "adapter", adapter)
    other(base_model_name_or_path=named)(adapter)
    code, told = said("--adapter", adapter, "--out", tmp_path / "out")
    assert (code, "name its base" in told) == (2, True)


def test_several_adapters_by_the_command(made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]) -> None:
    out = tmp_path / "out"
    words = ["--base", made / "base", "--adapter", made / "adapter", made / "second", "--out", out]
    code, told = said(*words, "--combine", "ties", "--weights", "0.7,0.3", "--density", "0.5")
    assert code == 0
    assert "weight 0.3" in told
    both = [made / "adapter", made / "second"]
    assert_same(out, merged_by_peft(opened(made / "base"), both, "ties", weights=[0.7, 0.3], density=0.5))


def other(**changes: Any) -> Callable[[Path], None]:
    """A change of the adapter's configuration."""

    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(adapter: Path) -> None:
        held = load_file(adapter / "adapter_model.safetensors")
        change(held)
        save_file(held, adapter / "adapter_model.safetensors")

    return changed


def pickled(adapter: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (other(peft_type="PROMPT_TUNING"), "PROMPT_TUNING, which is no change of the base's weights"),
        (other(peft_type="NEWEST"), "is of the kind NEWEST, which the installed PEFT"),
        (other(peft_type=3), "does not say what kind"),
        (other(megatron_config={"a": 1}), "its megatron_config belongs to Megatron's layers"),
        (other(layer_replication=[[0, 2], [1, 2]]), "repeats layers"),
        (other(r="many"), "rank is 'many'"),
        (other(r=0), "rank is 0"),
        (other(lora_alpha=[1]), r"its lora_alpha is \[1\]"),
        (other(rank_pattern={"q_proj": None}), "its rank_pattern is"),
        (other(target_modules=[3]), "its target_modules is"),
        (other(r=8), "is of rank 4, and its settings say 8"),
        (other(target_modules="(q_proj"), "a pattern that is none"),
        (other(base_model_name_or_path="x", unheard_of=3), "sets unheard_of, which the installed PEFT"),
        (tensors(lambda held: held.pop(A)), "is incomplete|missing|lora_A"),
        (tensors(lambda held: held.pop(A.replace("_A", "_B"))), "no lora_B beside it"),
        (tensors(lambda held: [held.pop(name) for name in list(held) if "layers.1.mlp.up_proj" in name]), "no weights for"),
        (tensors(lambda held: held.update({"base_model.model.model.other.lora_A.weight": torch.zeros(4, 4)})), "other"),
        (tensors(lambda held: held.update({A: torch.zeros(4, 31)})), r"belongs to another base: .*\[32, 31\]"),
        (tensors(lambda held: held[A].fill_(float("nan"))), "not finite"),
        (pickled, r"a pickle \(adapter_model.bin\) is not read"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"no tensors"), "corrupt or cut short"),
        (lambda adapter: (adapter / "adapter_config.json").unlink(), "is no adapter's folder"),
    ],
)  # fmt: skip
def test_a_wrong_adapter_gets_a_sentence(
    change: Callable[[Path], Any], complaint: str, made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(made / "adapter", adapter)
    change(adapter)
    code, told = said("--base", made / "base", "--adapter", adapter, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert len(told.strip().splitlines()) <= 4  # what it was about to do, and one sentence
    assert re.search(complaint, told), told
    assert "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--adapter", "{a}"], "the following arguments are required: --out"),
        (["--adapter", "{a}", "--out", "{a}"], "is there already and not empty"),
        (["--adapter", "nowhere", "--out", "{o}"], "nowhere is no adapter's folder"),
        (["--adapter", "{a}", "--out", "{o}", "--base", "nowhere"], "--base nowhere"),
        (["--adapter", "{a}", "--out", "{o}", "--base", "{a}"], "--base .* holds an adapter"),
        (["--adapter", "{a}", "--out", "{o}", "--dtype", "float8"], r"--dtype float8.*bfloat16"),
        (["--adapter", "{a}", "--out", "{o}", "--max_shard_size", "big"], "'big' is no size"),
        (["--adapter", "{a}", "--out", "{o}", "--combine", "linear"], "are for several adapters"),
        (["--adapter", "{a}", "{b}", "--out", "{o}", "--weights", "1"], "1 for 2 adapters"),
        (["--adapter", "{a}", "{b}", "--out", "{o}", "--weights", "1,x"], "numbers with commas"),
        (["--adapter", "{a}", "{b}", "--out", "{o}", "--combine", "teis"], "did you mean 'ties'"),
        (["--adapter", "{a}", "{b}", "--out", "{o}", "--combine", "ties"], "needs --density"),
        (["--adapter", "{a}", "{b}", "--out", "{o}", "--density", "2", "--combine", "ties"], "above 0 and at most 1"),
    ],
)
def test_wrong_words_get_a_sentence(
    words: list[str], complaint: str, made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    places = {"a": made / "adapter", "b": made / "second", "o": tmp_path / "out"}
    code, told = said(*(word.format(**places) for word in words))
    assert code == 2
    assert re.search(complaint, told), told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["shard", "index", "cut", "quantised", "config"])
def test_a_wrong_base_gets_a_sentence(
    harm: str, made: Path, tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(made / "base", base)
    first = sorted(base.glob("model-*.safetensors"))[0]
    if harm == "shard":
        first.unlink()
    elif harm == "index":
        (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    elif harm == "cut":
        first.write_bytes(first.read_bytes()[:-3])
    elif harm == "config":  # asked for where the adapter stands on more than plain layers
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "two"}))
    else:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    adapters = [made / "adapter", made / "second"] if harm == "config" else [made / "adapter"]
    code, told = said("--base", base, "--adapter", *adapters, "--out", tmp_path / "out")
    assert code == 2
    expected = {
        "config": "its model cannot be made",
        "shard": "is missing, though",
        "index": "no index",
        "cut": "cut short",
        "quantised": "stored quantised .gptq",
    }
    assert re.search(expected[harm], told), told
    assert not (tmp_path / "out").exists()


MOMENTS = [
    ("peftkit.merging.stream", "put", 1),
    ("peftkit.merging.stream", "put", 15),
    ("peftkit.merging.stream", "synchronise", 1),
    ("peftkit.flows.merge", "copy_beside", 1),
    ("peftkit.flows.merge", "write_json", 2),
    ("peftkit.flows.merge", "synchronise_all", 1),
    ("peftkit.flows.merge", "put_in_place", 1),
]


@pytest.mark.parametrize(("module", "name", "time"), MOMENTS)
def test_killed_at_any_instant_it_leaves_no_model(
    module: str, name: str, time: int, made: Path, tmp_path: Path
) -> None:
    child = os.fork()
    if not child:
        _kill_at(module, name, time)
        merge(str(made / "base"), [made / "adapter"], tmp_path / "out", max_shard_size="50KB")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    merge(str(made / "base"), [made / "adapter"], tmp_path / "out")  # what was left is in nobody's way
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _kill_at(module: str, name: str, time: int) -> None:
    where = import_module(module)
    real, calls = getattr(where, name), iter(range(1, 1000))

    def call(*words: Any, **named: Any) -> Any:
        if next(calls) == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **named)

    setattr(where, name, call)


def test_a_disk_that_is_too_small_is_told_before_a_byte_is_written(made: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        with pytest.raises(DiskError, match=r"takes .* kB, and .* are free there"):
            merge(str(made / "base"), [made / "adapter"], disk / "out")
        assert not list(disk.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("peftkit.merging.tensors.os.write", full)
    with pytest.raises(DiskError, match="cannot be written: No space left"):
        merge(str(made / "base"), [made / "adapter"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_are_never_held_together(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is made when the one before it has been written."""
    from peftkit.merging import stream
    from peftkit.merging.tensors import Shard

    order: list[str] = []
    put, real = stream.put, Shard.put
    monkeypatch.setattr(stream, "put", lambda entry, shard: (order.append(entry.name), put(entry, shard)))
    monkeypatch.setattr(Shard, "put", lambda shard, tensor: (order.append("written"), real(shard, tensor)))
    merge(str(made / "base"), [made / "adapter"], tmp_path / "out")
    changed = [at for at, name in enumerate(order) if name.endswith("_proj.weight")]
    assert len(changed) == 14
    assert all(order[at + 1] == "written" for at in changed)
    assert len(weights(tmp_path / "out")) == 21
