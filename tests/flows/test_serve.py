"""`peftkit serve`: what is opened under which name; and the command itself, from its start to its end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pytest
import torch

from peftkit.engine.world import joined
from peftkit.errors import ExportError
from peftkit.evaluation.certificate import Certificate
from peftkit.flows.serve import Asked, check, opened
from tests.launch import ROOT
from tests.serving.running import QUESTIONS, chat_run, exported, predicted

READY = re.compile(r"at http://[\d.]+:(\d+)")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of one base."""
    folder = tmp_path_factory.mktemp("serve")
    first = chat_run(folder / "first")
    second = chat_run(folder / "second", folder / "first" / "base", strategy={"name": "lora", "rank": 4})
    return exported(first, "adapter"), exported(second, "adapter")


def test_adapters_of_one_base_share_it(adapters: tuple[Path, Path]) -> None:
    first, second = adapters
    with joined() as world:
        found = opened(Asked({"first": first, "second": second}), world)
    assert [one.name for one in found] == ["first", "second", "base"]
    assert len({id(one.model) for one in found}) == 1
    names = [name for name, _ in found[0].model.named_parameters()]
    assert sum("q_proj.base_layer" in name for name in names) == 2  # of two layers, once each


def test_an_adapter_that_brings_weights_of_the_base_has_its_own(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """What one adapter has written into the base, the other must not see."""
    from safetensors.torch import load_file, save_file

    first = adapters[0]
    odd = Path(shutil.copytree(adapters[1], tmp_path / "odd"))
    weights = load_file(odd / "adapter_model.safetensors")
    width = torch.zeros(320, 32)
    save_file({**weights, "base_model.model.model.embed_tokens.weight": width}, odd / "adapter_model.safetensors")
    with joined() as world:
        found = {one.name: one for one in opened(Asked({"first": first, "odd": odd}, verify=False), world)}
    assert found["first"].model is not found["odd"].model
    assert bool(found["first"].model.get_input_embeddings().weight.any())
    assert not bool(found["odd"].model.get_input_embeddings().weight.any())


def test_an_export_that_was_changed_is_not_served(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapters[0], tmp_path / "changed"))
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with joined() as world:
        with pytest.raises(ExportError, match=r"adapter_model.safetensors changed .*--no-verify"):
            opened(Asked({"a": folder}), world)
        assert opened(Asked({"a": folder}, verify=False), world)[0].name == "a"


def test_an_export_that_was_forced_is_served_with_a_warning(
    adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(adapters[0], tmp_path / "forced"))
    changes = {"forced": True, "missed": ("its text is another one",)}
    Certificate.read(folder).model_copy(update=changes).write(folder)
    check(folder)
    assert "exported with --force, as its text is another one" in capsys.readouterr().out
    check(adapters[0])
    assert not capsys.readouterr().out


@contextmanager
def started(*words: str | Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The command as its own process, its address, and the lines that it said until then."""
    command = [sys.executable, "-m", "peftkit", "serve", *map(str, words), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout
    said: list[str] = []
    late = threading.Timer(120, process.kill)
    late.start()
    try:
        for line in process.stdout:
            said.append(line.strip())
            if address := READY.search(line):
                yield process, f"http://127.0.0.1:{address[1]}", said
                break
        else:
            pytest.fail("\n".join(said))
    finally:
        late.cancel()
        process.kill()
        process.wait()


def test_the_command_answers_and_ends_well(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """Asked to stop, it takes nothing new, and finishes the answer that it is writing."""
    rows = [{"prompt": question} for question in QUESTIONS[:2]]
    expected = [row["generated"] for row in predicted(adapters[0], rows, tmp_path)]
    everywhere = ("--host", "0.0.0.0")  # noqa: S104
    with started(f"mine={adapters[0]}", *everywhere, PEFTKIT_API_KEY="secret-key") as (process, url, said):
        assert any("serving mine (chat)" in line for line in said)
        assert not any("warning: whoever" in line for line in said)
        headers = {"Authorization": "Bearer secret-key"}
        body = {"model": "mine", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
        found = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert found.json()["choices"][0]["message"]["content"] == expected[0]
        long = {**body, "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": QUESTIONS[1]}]}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=long, headers=headers, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert process.wait(30) == 0
        assert process.stdout
        told = "\n".join([*said, process.stdout.read()])
    assert "secret-key" not in told
    assert QUESTIONS[0] not in told
    assert "Traceback" not in told


def test_what_does_not_end_in_time_is_ended(adapters: tuple[Path, Path]) -> None:
    open_to_all = ("--host", "0.0.0.0")  # noqa: S104
    with started(adapters[0], "--grace", "1s", "--batch", "1", *open_to_all) as (process, url, said):
        assert any("whoever reaches 0.0.0.0 can use it; set PEFTKIT_API_KEY" in line for line in said)
        body = {"prompt": ["a"] * 64, "max_tokens": 120, "n": 3, "model": "run", "stream": True}
        told = []
        with suppress(httpx.RemoteProtocolError), httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
            for line in stream.iter_lines():
                if not told:
                    process.send_signal(signal.SIGTERM)
                told.append(line)
        assert process.wait(60) == 0
    assert told
    assert "data: [DONE]" not in told
