"""What comes from elsewhere runs nothing, reads and writes nothing elsewhere: each attack is tried on the real commands.

An attack is a file that, if its code ran, would leave another file, the canary.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import feather
from transformers import dynamic_module_utils

from peftkit.cli.main import main
from peftkit.config.read import read
from peftkit.config.read import write as dump
from peftkit.config.trust import remember
from peftkit.errors import ConfigError
from peftkit.exporters.manual import MANUAL
from peftkit.flows.export import read_run
from peftkit.run_folder import RunFolder
from peftkit.status import Failure, Status, write_failure, write_status
from tests.launch import run as launched
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[1]
CHAT = [
    {"messages": [{"role": "user", "content": f"ask {at}"}, {"role": "assistant", "content": "yes"}]} for at in range(8)
]
ROWS = [{"text": f"the row of number {at}"} for at in range(8)]
PICKLES = (
    *("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *(
        "latest_universal.pkl",
        "mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "tokenizer.pkl",
    ),
    *("reference.npy", "trained.npz", "state.pickle", "vocab.pkl", "data.joblib"),
)
"""Files beside what is read; none of them is."""


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.canary), "w")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on a tiny model, with both exports, and rows."""
    folder = tmp_path_factory.mktemp("security")
    save_tiny(folder / "base")
    write(folder / "chat.jsonl", CHAT)
    assert main(train(folder, "--out", f"{folder}/run", "--eval.before", "false")) == 0
    assert main(["export", f"{folder}/run"]) == 0
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that none of a test's commands may leave."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists()


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """The run's folder, to be tampered with."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


@pytest.fixture
def base(place: Path, tmp_path: Path) -> Path:
    """The base's folder, to be tampered with."""
    return Path(shutil.copytree(place / "base", tmp_path / "base"))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run words that have to fail with this exit code: what was said, without the name of what may not be executed."""

    def run_words(words: list[str], code: int) -> str:
        capfd.readouterr()
        found = main(words)
        said = capfd.readouterr().err
        assert found == code, said
        assert said.startswith("peftkit: ") and "unexpected" not in said and "Traceback" not in said, said
        return said

    return run_words


def train(folder: Path, *words: str, model: Path | None = None, task: str = "chat", data: str = "chat") -> list[str]:
    said = {
        "model": model or folder / "base",
        "task": task,
        "data": folder / f"{data}.jsonl",
        "strategy": "lora",
        "steps": 1,
    }
    return ["train", *(word for name, value in said.items() for word in (f"--{name}", str(value))), *words]


def commands(run: Path, place: Path) -> dict[str, list[str]]:
    """Everything that opens a run."""
    rows, out = f"{place}/chat.jsonl", run.parent
    return {
        "eval": ["eval", f"{run}", rows],
        "eval of a checkpoint": ["eval", f"{run}/checkpoints/step-000001", rows],
        "eval of an adapter": ["eval", f"{run}/export/adapter", rows],
        "eval of a merged model": ["eval", f"{run}/export/merged", rows],
        "predict": ["predict", f"{run}", rows, "--out", f"{out}/answers.jsonl"],
        "export": ["export", f"{run}", "--to", "adapter"],
        "compare": ["compare", f"{run}", "--rows", "1"],
        "resume": ["train", "--out", f"{run}", "--resume"],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(file: Path, **values: Any) -> None:
    """Replace values of a JSON or YAML file."""
    load, write_out = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    file.write_text(write_out({**load(file.read_text()), **values}))


def plant_code(folder: Path, canary: Path, *classes: str) -> None:
    """Let a model's folder name Python code for these Auto classes."""
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        change(folder / file, auto_map=dict.fromkeys(classes, "evil.Evil"))


# --- pickles


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code"}
"""Modules that make objects, or run code, of what they read."""
HARMLESS = {"UnpicklingError"}


def test_no_source_file_can_load_a_pickle() -> None:
    found = {
        f"{path.name}:{at}" for path in (ROOT / "peftkit").rglob("*.py") for at in unsafe(ast.parse(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load(path)", "torch.load(p, weights_only=False)",
        "np.load(p)", "numpy.load(p, allow_pickle=True)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "eval(text)",
        "exec(text)", "subprocess.run(text, shell=True)", "os.system(text)", "from joblib import load",
        "pandas.read_pickle(p)", "engine.load_checkpoint(p)", "tar.extractall(p)",
    ],
)  # fmt: skip
def test_and_one_that_could_would_be_seen(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def unsafe(tree: ast.AST) -> Iterator[int]:
    """Lines that run what they read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and UNSAFE & {alias.name for alias in node.names}:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE and {one.name for one in node.names} - HARMLESS:
            yield node.lineno
        if isinstance(node, ast.Call) and is_unsafe(node):
            yield node.lineno


def is_unsafe(call: ast.Call) -> bool:
    words = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    name = ast.unparse(call.func)
    if name == "torch.load":
        return words.get("weights_only") is not True
    if name == "yaml.load":  # of PyYAML; our own takes a path alone
        return len(call.args) + len(call.keywords) > 1
    if name in ("np.load", "numpy.load"):
        return words.get("allow_pickle") is not False
    last = name.rpartition(".")[2]
    if last in ("unsafe_load", "full_load", "read_pickle", "load_checkpoint", "extractall", "popen"):
        return True
    return name in ("eval", "exec", "compile", "os.system", "pickle.load") or words.get("shell") is True


def test_pickles_beside_what_is_read_are_read_by_nothing(place: Path, run: Path, canary: Path) -> None:
    evil, base = pickle.dumps(Evil(canary)), place / "base"
    (run / "global_step1").mkdir()
    (run / "latest").write_text("global_step1")
    planted = [folder / name for folder in (base, run, *filter(Path.is_dir, run.rglob("*"))) for name in PICKLES]
    for file in planted:
        file.write_bytes(evil)
    try:
        for name, words in commands(run, place).items():
            assert main(words) == 0, name
    finally:
        for name in PICKLES:
            (base / name).unlink()


def reading(folder: Path, **values: Any) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / MANUAL).read_text())["reading"]
    return {**held, **values}


@pytest.mark.parametrize("shards", [False, True])
def test_a_base_that_is_a_pickle_alone_is_refused(
    shards: bool, place: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(canary)))
    if shards:
        (base / "pytorch_model.bin").rename(base / "pytorch_model-00001-of-00001.bin")
        held = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(held))
    said = refused(train(place, model=base), 2)
    assert "its weights are a pickle (.bin) that holds more than tensors, and nothing of it was run" in said


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_export_whose_weights_are_a_pickle_is_refused(
    kind: str, place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    folder = run / "export" / kind
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    change(folder / MANUAL, files=[])
    said = refused(["eval", str(folder), f"{place}/chat.jsonl"], 1)
    assert "a pickle (" in said and "is not read in" in said


def test_a_pickle_in_a_checkpoint_is_no_safetensors(
    place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    import hashlib

    folder = run / "checkpoints/step-000001"
    evil = pickle.dumps(Evil(canary))
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in folder.glob("*.safetensors"):
        file.write_bytes(evil)
        manifest["files"][file.name] = hashlib.sha256(evil).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("eval", "export", "resume"):
        assert "safetensors" in refused(commands(run, place)[name], 1)


def test_a_pickle_in_the_cache_is_not_unpickled(
    place: Path, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    import hashlib

    words = train(place, "--data.cache", f"{tmp_path}/cache", "--out", f"{tmp_path}/out")
    assert main(words) == 0
    for manifest in (tmp_path / "cache").rglob("manifest.json"):
        digests = json.loads(manifest.read_text())
        for file in manifest.parent.rglob("*.npy"):
            np.save(file, np.array([Evil(canary)], dtype=object), allow_pickle=True)
            digests[str(file.relative_to(manifest.parent))] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(digests))
    assert main([*words[:-1], f"{tmp_path}/again"]) in (0, 1, 2)


@pytest.mark.parametrize(
    "name", ["rows.pkl", "rows.pickle", "rows.npy", "rows.pt", "rows.joblib", "rows.tar", "rows.py"]
)
def test_rows_in_a_pickle_are_refused(
    name: str, place: Path, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    shown = ["--model", f"{place}/base", "--task", "causal_lm"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(pickle.dumps(Evil(canary)))
    assert "names no format" in refused(["data", "show", *shown, "--data", f"{tmp_path}/data/{name}"], 2)
    assert "no data in it" in refused(["data", "show", *shown, "--data", f"{tmp_path}/data"], 2)


def test_a_type_of_arrow_that_is_a_pickle_is_not_unpickled(
    tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(canary)),
    }
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=told)])
    feather.write_feather(
        pyarrow.table({"text": ["a", "b"]}, schema=schema), tmp_path / "rows.arrow", compression="uncompressed"
    )
    assert main(["data", "check", "--data", f"{tmp_path}/rows.arrow", "--task", "causal_lm"]) in (0, 1, 2)


def test_a_pickle_in_a_saved_data_set_is_not_unpickled(
    place: Path, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.write_bytes(pickle.dumps(Evil(canary)))
    assert "is no readable data set of save_to_disk" in refused(train(place, "--data", f"{tmp_path}/saved"), 2)


# --- code that comes with a model


ALL = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "AutoModel")


@pytest.mark.parametrize("classes", [ALL, ("AutoTokenizer",), ("AutoConfig",)])
def test_code_that_comes_with_a_model_is_not_run_and_the_way_to_allow_it_is_named(
    classes: tuple[str, ...], place: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    plant_code(base, canary, *classes)
    if "AutoConfig" in classes:
        change(base / "config.json", model_type="evil")
    else:
        change(base / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    said = refused(train(place, model=base), 2)
    assert "brings Python code of its own (evil.Evil), and none of it was run" in said
    assert "--model.trust_remote_code" in said


def test_it_is_run_where_the_user_says_so(
    place: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    plant_code(base, tmp_path / "ran", *ALL)
    change(base / "config.json", model_type="evil")
    assert main(train(place, "--model.trust_remote_code", "--dry-run", model=base)) == 2  # it runs, and is no model
    assert (tmp_path / "ran").exists()


def test_a_kernel_that_a_configuration_names_is_not_fetched(
    place: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    change(base / "config.json", attn_implementation="somebody/kernels")
    assert "asks for code from the hub to compute attention (somebody/kernels)" in refused(train(place, model=base), 2)


def test_a_base_with_an_adapter_in_its_folder_is_refused(
    place: Path, run: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(run / "export/adapter/adapter_config.json", base)
    assert "holds a model and an adapter" in refused(train(place, model=base), 2)


OPENED = ("eval", "eval of a checkpoint", "predict", "export", "compare", "resume")


@pytest.mark.parametrize("command", OPENED)
def test_a_run_of_unknown_origin_cannot_allow_code(
    command: str, place: Path, run: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    plant_code(base, canary, *ALL)
    change(base / "config.json", model_type="evil")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    change(run / "config.yaml", model={**settings["model"], "path": str(base), "trust_remote_code": True})
    said = refused(commands(run, place)[command], 2)
    assert "code" in said and "--model.trust_remote_code" in said


SHELL = {
    "setup": ["touch CANARY"],
    "python": "CANARY",
    "container": "docker://evil",
    "environment": {"LD_PRELOAD": "CANARY"},
    "sbatch": ["--bcast=CANARY"],
    "modules": ["evil"],
    "conda": "CANARY",
    "venv": "CANARY",
    "then": ["eval rows.jsonl --metrics CANARY"],
    "array": {"model.trust_remote_code": [True]},
}
"""Settings of SLURM's that say what a node runs."""


@pytest.mark.parametrize("where", ["config.yaml", "slurm/run.yaml"])
@pytest.mark.parametrize("name", SHELL)
def test_nor_is_a_job_submitted_that_runs_what_its_folder_names(
    name: str, where: str, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    value = json.loads(json.dumps(SHELL[name]).replace("CANARY", str(canary)))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "slurm").mkdir()
    (run / "config.yaml").rename(run / where)
    change(run / where, slurm={**settings["slurm"], name: value})
    for more in ([], ["--dry-run"]):
        said = refused(["submit", "--out", f"{run}", *more], 2)
        assert f"{run / where} asks to run code (--slurm.{name}" in said
    assert main(["submit", "--out", f"{run}", "--config", f"{run / where}", "--dry-run"]) == 0


@pytest.mark.parametrize("job", ["--user=me", "1 --user=me", "1;2", "$(touch CANARY)", 12])
def test_the_number_of_a_job_is_no_option_of_scancels(
    job: Any, run: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("scancel", "scontrol", "squeue", "sacct"):
        (tmp_path / "bin" / name).write_text(
            f'#!/bin/sh\ncase "$*" in *--user=me*|*touch*|*";"*) touch {canary};; esac\nexit 1\n'
        )
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (run / "slurm").mkdir(exist_ok=True)
    (run / "slurm/job.json").write_text(json.dumps({"token": "a", "job": job, "submitted": 1}))
    for words in (["cancel", f"{run}", "--now"], ["logs", f"{run}"], ["submit", "--out", f"{run}"]):
        assert main(words) in (0, 1, 2)


def test_what_a_run_said_does_not_steer_the_terminal(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steering = "\x1b[2J\x1b]0;title\x07"
    failure = Failure(0, 1, 0, "code", "ValueError", f"bad {steering}", traceback=f"at {steering}")
    write_failure(RunFolder(run), failure)
    write_status(RunFolder(run).status, Status("failed", reason=f"why {steering}"))
    RunFolder(run).log(0).write_text(f"log {steering}\n")
    capfd.readouterr()
    assert main(["logs", f"{run}"]) == 0
    said = capfd.readouterr().out
    assert "\\x1b[2J" in said and "\x1b" not in said


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_nor_can_an_export(
    kind: str, place: Path, run: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    folder = run / "export" / kind
    plant_code(base, canary, *ALL)
    change(base / "config.json", model_type="evil")
    if kind == "merged":
        shutil.copy(base / "config.json", folder)
        shutil.copy(base / "evil.py", folder)
    change(folder / MANUAL, reading=reading(folder, base=str(base), trust_remote_code=True))
    said = refused(["eval", str(folder), f"{place}/chat.jsonl"], 2)
    assert "brings Python code of its own (evil.Evil), and none of it was run" in said


def test_a_resumed_run_of_unknown_origin_runs_no_metric_of_its_own(
    place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    script = run / "metric.py"
    script.write_text(f"open({str(canary)!r}, 'w')\n")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    metrics = [{"name": "evaluate", "path": str(script)}]
    change(run / "config.yaml", eval={**settings["eval"], "metrics": metrics})
    said = refused(commands(run, place)["resume"], 2)
    assert "asks to run code (--eval.metrics" in said and "--config" in said
    for command in ("eval", "export", "compare"):
        assert main(commands(run, place)[command]) == 0


def test_what_a_user_has_asked_for_need_not_be_asked_for_again(place: Path, run: Path) -> None:
    settings = read(["--config", f"{run}/config.yaml", "--model.trust_remote_code", "--slurm.setup", "true"])
    (run / "config.yaml").write_text(dump(settings))
    again = ["--out", f"{run}", "--resume"]
    with pytest.raises(ConfigError, match="asks to run code"):
        read(again)
    remember(settings)
    assert read(again).model.trust_remote_code
    assert read_run(run / "config.yaml").model.trust_remote_code
    moved = settings.model_copy(update={"model": settings.model.model_copy(update={"path": "somebody/else"})})
    (run / "config.yaml").write_text(dump(moved))
    assert not read_run(run / "config.yaml").model.trust_remote_code


EDITED: dict[str, dict[str, Any]] = {
    "another class": {"reading": {"auto_class": "RagRetriever"}},
    "a function for a format": {"reading": {"dtype": "load"}},
    "another exporter": {"exporter": {"name": "evil.Evil"}},
    "labels of another kind": {"reading": {"labels": ["a"]}},
    "a list": {"reading": []},
}


@pytest.mark.parametrize("case", EDITED)
def test_names_in_an_export_are_no_way_to_anything_else(
    case: str, place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    folder = run / "export/adapter"
    for name, value in EDITED[case].items():
        change(
            folder / MANUAL,
            **{name: {**reading(folder), **value} if isinstance(value, dict) and name == "reading" else value},
        )
    assert f"{MANUAL} cannot be read" in refused(["eval", str(folder), f"{place}/chat.jsonl"], 2)


def test_an_export_cannot_choose_where_anything_is_written(place: Path, run: Path, canary: Path) -> None:
    folder = run / "export/adapter"
    held = json.loads((folder / MANUAL).read_text())["data"]
    change(
        folder / MANUAL,
        data={**held, "cache": str(canary), "train": "/etc/passwd", "augment": {"synonyms": "/etc/passwd"}},
    )
    assert main(["eval", str(folder), f"{place}/chat.jsonl"]) == 0


ADAPTERS: dict[str, dict[str, Any]] = {
    "a module to import": {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    "another kind": {"peft_type": "XLORA"},
    "files to read": {"corda_config": {"cache_file": "evil.pt"}},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_asks_peft_for_nothing_else(
    case: str, place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    folder = run / "export/adapter"
    change(folder / "adapter_config.json", **ADAPTERS[case])
    assert "asks for what no adapter of peftkit has" in refused(["eval", str(folder), f"{place}/chat.jsonl"], 1)


def test_the_class_and_the_base_that_an_adapter_names_are_not_followed(
    place: Path, run: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(run))
    named = {"parent_library": "evil", "base_model_class": "Evil"}
    folder = run / "export/adapter"
    change(folder / "adapter_config.json", auto_mapping=named, base_model_name_or_path="somebody/evil", task_type=None)
    assert main(["eval", str(folder), f"{place}/chat.jsonl"]) == 0


# --- templates


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% for a in range(10000000) %}{% endfor %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(
    template: str, place: Path, base: Path, canary: Path, refused: Callable[..., str]
) -> None:
    (base / "chat_template.jinja").unlink(missing_ok=True)
    change(base / "tokenizer_config.json", chat_template=template.replace("CANARY", str(canary)))
    said = refused(train(place, model=base), 2)
    assert "chat template" in said


def test_names_and_labels_stand_in_the_card_as_they_are(tmp_path: Path, canary: Path) -> None:
    labels = ("{{ 7 * 7 }}", "<script>alert(1)</script>", "a|b\n# c", "[d](javascript:e)", "${HOME} `f`")
    folder = tmp_path / 'a"b {{ 7 * 7 }}'
    save_tiny(folder / "base", "bert")
    write(folder / "rows.jsonl", [{"<b>text</b>": "a", "label": labels[at % 5]} for at in range(10)])
    columns = ["--data.columns", "{text: <b>text</b>}", "--out", f"{folder}/run"]
    assert main(train(folder, *columns, task="sequence_classification", data="rows")) == 0
    card = (folder / "run/export/adapter/README.md").read_text()
    assert "49" not in card.partition("## Check")[0].replace("{{ 7 * 7 }}", "")
    assert "<script>" not in card and "<b>" not in card and "](javascript" not in card
    assert "\n# c" not in card and "{{ 7 * 7 }}" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert json.dumps(str(folder / "base")) in code
    ast.parse(code)


# --- YAML


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]\n" for at in range(1, 10)
)
YAMLS: dict[str, tuple[str, str]] = {
    "a call": ("model: !!python/object/apply:os.system ['touch CANARY']\n", "the tag"),
    "a call in short": ("? !!python/object/apply:os.system ['touch CANARY']\n: 1\n", "a key is a word"),
    "an object": ("steps: !!python/object/new:os.system ['touch CANARY']\n", "the tag"),
    "a name": ("steps: !!python/name:os.system\n", "the tag"),
    "a tag of its own": ("steps: !evil 1\n", "the tag !evil is not read here"),
    "billions": (BOMB, "more than 100,000 values"),
    "an abyss": ("steps: " + "[" * 3_000, "too deep to be settings"),
    "a huge number": ("steps: " + "9" * 5000, "steps takes"),
    "itself": ("steps: &a [*a]\n", "an alias that contains itself"),
}


@pytest.mark.parametrize("case", YAMLS)
def test_yaml_holds_values_and_nothing_else(
    case: str, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    text, told = YAMLS[case]
    (tmp_path / "config.yaml").write_text(text.replace("CANARY", str(canary)))
    for words in (["train", "--config", f"{tmp_path}/config.yaml"], ["train", "--resume", "--out", f"{tmp_path}"]):
        assert told in refused(words, 2)
    assert told in refused(["eval", str(tmp_path), "rows.jsonl"], 2)


# --- paths


@pytest.mark.parametrize("name", ["../../../outside.bin", "/dev/zero", "sub/../../x"])
def test_a_checkpoint_lists_files_of_its_own_folder(
    name: str, place: Path, run: Path, canary: Path, refused: Callable[..., str]
) -> None:
    manifest = run / "checkpoints/step-000001/manifest.json"
    change(manifest, files={**json.loads(manifest.read_text())["files"], name: "0" * 64})
    for command in ("eval", "export", "resume"):
        assert f"lists {name}, which is no file of this folder" in refused(commands(run, place)[command], 1)


LINKS = (
    "logs",
    "logs/process-0.log",
    "config.yaml",
    "metrics.jsonl",
    "checkpoints",
    "checkpoints/step-000001",
    "export",
)


@pytest.mark.parametrize("name", LINKS)
def test_what_a_link_leads_to_outside_is_neither_written_nor_deleted(
    name: str, place: Path, run: Path, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()}
    for command in ("resume", "export", "compare"):
        assert f"{run / name} is a link to {outside}" in refused(commands(run, place)[command], 2)
    assert {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()} == before


def test_a_link_within_the_run_and_to_the_run_is_none_of_these(place: Path, run: Path, tmp_path: Path) -> None:
    (run / "newest").symlink_to(run / "checkpoints/step-000001")
    (tmp_path / "link").symlink_to(run)
    assert main(["export", f"{tmp_path}/link", "--to", "adapter"]) == 0


def test_a_packed_file_is_read_and_never_unpacked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with ZipFile(tmp_path / "in/rows.zip", "w") as packed:
        packed.writestr("../../outside.jsonl", (place / "chat.jsonl").read_text())
    words = ["data", "check", "--data", f"{tmp_path}/in/rows.zip", "--task", "chat", "--model", f"{place}/base"]
    assert main(words) in (0, 1)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["rows.zip"]
    assert not list(tmp_path.parent.glob("outside*"))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_table_of_files_names_those_of_its_folder(
    name: str, tmp_path: Path, canary: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    write(tmp_path / "images/metadata.jsonl", [{"file_name": name, "label": "a"}])
    model = save_tiny(tmp_path / "vit", "vit")
    words = ["data", "show", "--model", str(model), "--data", f"{tmp_path}/images", "--task", "image_classification"]
    assert "'file_name' leads out of the folder" in refused(words, 2)


# --- secrets and rows


SECRETS = {
    "HF_TOKEN": "hf-own-0123456789",
    "WANDB_API_KEY": "wandb-key-0123",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+0123",
}
TELLING = """
import logging
import os
import sys
import warnings
from transformers import PreTrainedTokenizerFast

said = " ".join(os.environ[name] for name in {names!r})
print("printed", said)
print("printed to stderr", said, file=sys.stderr)
warnings.warn("warned " + said)
logging.getLogger("transformers").error("logged " + said)
os.write(2, ("from C " + said).encode())
os.system("echo from a child " + said)
raise ValueError("raised " + said)
"""


def told_in(folder: Path, words: list[str]) -> list[str]:
    """Files below the folder in which one of the words stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [f"{path}: {word}" for path in files for word in words if word.encode() in path.read_bytes()]


def test_secrets_reach_no_file_and_no_message(place: Path, tmp_path: Path) -> None:
    script = tmp_path / "telling.py"
    script.write_text(TELLING.format(names=tuple(SECRETS)))
    out = tmp_path / "out"
    words = train(place, "--out", f"{out}", "--eval.metrics", str(script))
    done = launched([sys.executable, ROOT / "launch/train.py", *words[1:]], **SECRETS)
    assert done.returncode == 2
    assert "transformers: logged (hidden)" in done.stdout
    assert "raised (hidden)" in done.stdout
    logs = "".join(path.read_text(errors="replace") for path in (out / "logs").iterdir())
    for how in ("printed", "printed to stderr", "warned", "logged", "from C", "from a child", "raised"):
        assert how in logs, how
    assert not [secret for secret in SECRETS.values() if secret in done.stdout]
    assert not told_in(out, list(SECRETS.values()))
    assert list((out / "errors").rglob("process-0.json"))


@pytest.fixture
def served(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address with secrets in it, under which the rows are."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(place))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://me:pass-of-mine@127.0.0.1:{server.server_port}/chat.jsonl?token=token-of-mine"
        server.shutdown()
        thread.join()


def test_nor_do_those_of_an_address_and_its_run_can_be_used_without_them(
    place: Path, tmp_path: Path, served: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(train(place, "--data", served, "--out", f"{out}")) == 0
    assert main(["export", f"{out}"]) == 0
    assert main(["train", "--out", f"{out}", "--resume"]) == 0
    said = capfd.readouterr()
    hidden = ["pass-of-mine", "token-of-mine"]
    assert not [secret for secret in hidden if secret in said.out + said.err]
    assert not told_in(out, hidden)
    assert "me:(hidden)@127.0.0.1" in (out / "export/adapter/README.md").read_text()


WORD = "Rumpelstilzchen"
CONTENTS: dict[str, tuple[str, str]] = {
    "a word for a conversation": ("chat", '{"messages": "SECRET"}'),
    "a role": ("chat", '{"messages": [{"role": "SECRET", "content": "SECRET"}]}'),
    "a number for a text": (
        "chat",
        '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "SECRET": "SECRET"}]}',
    ),
    "an object for a label": ("sequence_classification", '{"text": "SECRET", "label": {"a": "SECRET"}}'),
    "a word for a number": (
        "sequence_classification --task.problem regression",
        '{"text": "SECRET", "label": "SECRET"}',
    ),
    "broken JSON": ("causal_lm", '{"text": "SECRET"'),
    "no object": ("causal_lm", '"SECRET"'),
    "tags for words": ("token_classification", '{"words": ["SECRET"], "tags": ["SECRET", "SECRET"]}'),
    "an answer elsewhere": (
        "question_answering",
        '{"question": "SECRET", "context": "a", "answers": {"text": ["SECRET"], "answer_start": [7]}}',
    ),
    "a picture that is none": ("image_classification", '{"image": "/SECRET.png", "label": "SECRET"}'),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_what_stands_in_a_row_is_told_by_no_message_and_no_log(
    case: str, place: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    task, row = CONTENTS[case]
    (tmp_path / "rows.jsonl").write_text((row.replace("SECRET", WORD) + "\n") * 8)
    words = train(place, "--data", f"{tmp_path}/rows.jsonl", "--out", f"{tmp_path}/out", task=task.split()[0])
    said = refused([*words, *task.split()[1:]], 2)
    assert WORD not in said
    assert not told_in(tmp_path / "out", [WORD])
