"""Graphs answer as the model that was trained: with other rows, lengths and padding, and whole texts.

What each test's families stand for was tried with all of tests/tiny.py by hand (26 November 2026; torch 2.13, transformers 5.23,
onnx 1.23, onnxscript 0.7, ONNX Runtime 1.32, OpenVINO 2026.4). ONNX Runtime with every head
that a family has, the others with one or two of each; errors stay below 5e-5, mostly below 1e-6, and texts are the same, for:

- bert, roberta, albert, distilbert, electra: classes of texts, of words and of choices, answers, masked words;
- gpt2, llama, qwen, gemma: classes, answers, and texts with a cache, greedy and with beams;
- t5, bart, marian: texts by an encoder and a decoder with a cache (a random t5 writes by ties, which any rounding turns);
- vit, resnet, convnext, efficientnet; wav2vec2 with CTC; whisper for classes of sounds.

t5 and bart answer questions in ONNX Runtime and OpenVINO, not in torch.export's program; no class of theirs is traced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import ConfigError, ExportError
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters import Exporter, Onnx, OpenVino, Torch
from peftkit.exporters.base import Reading
from peftkit.exporters.graphs import OnnxPart, OpenVinoPart
from peftkit.flows.export import export
from peftkit.flows.predict import Asked, predict
from peftkit.flows.trained import open_trained
from peftkit.strategies import Lora
from peftkit.tasks import Task
from tests.flows.test_export import trained_run
from tests.tiny import IMAGES, SEQ2SEQ, config, model_class, tiny, tokenizer
from tests.trained import head_of, shake

STRATEGY = Lora(rank=2)
EXPORTERS: dict[str, Exporter] = {"onnx": Onnx(), "openvino": OpenVino(), "torch": Torch()}
FILES = {
    "onnx": {"model.onnx", "model.onnx.data"},
    "openvino": {"openvino_model.xml", "openvino_model.bin"},
    "torch": {"model.pt2"},
}
AUTO = {
    "causal_lm": "CausalLM",
    "seq2seq": "Seq2SeqLM",
    "sequence_classification": "SequenceClassification",
    "image": "ImageClassification",
}
CASES = [
    ("onnx", "bert", "sequence_classification"),
    ("onnx", "bert", "multiple_choice"),
    ("onnx", "llama", "causal_lm"),
    ("onnx", "bart", "seq2seq"),
    ("onnx", "vit", "image"),
    ("openvino", "roberta", "question_answering"),
    ("openvino", "gpt2", "causal_lm"),
    ("openvino", "llama", "sequence_classification"),
    ("torch", "distilbert", "token_classification"),
    ("torch", "qwen", "causal_lm"),
]


class Written:
    """A model as if trained, and its graph opened by the program that computes it."""

    def __init__(self, name: str, family: str, head: str, folder: Path) -> None:
        plain = tiny(family, head=head)
        self.model: Any = shake(STRATEGY.adapt(plain, head_of(plain))).eval()
        self.exporter, self.family, self.head, self.folder = EXPORTERS[name], family, head, folder
        auto = "AutoModelFor" + AUTO.get(head, model_class(family, head).__name__.partition("For")[2])
        self.reading = Reading(auto, "a/base", trust_remote_code=True)
        tokenizer().save_pretrained(folder)
        with torch.no_grad():
            self.answers = [(asked, logits(self.model(**asked))) for asked in questions(family, head)]
            self.texts = texts(self.model) if head in ("causal_lm", "seq2seq") else []
        self.exporter.write(self.model, STRATEGY, folder, self.reading, sample(family, head))
        self.graph = self.exporter.open(folder, self.reading)


def logits(outputs: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if name.endswith("logits")}


def sample(family: str, head: str) -> dict[str, torch.Tensor]:
    """The one row that the model is traced with, or two."""
    return questions(family, head)[0]


def questions(family: str, head: str) -> list[dict[str, torch.Tensor]]:
    """Batches of several sizes, padded on the right and on the left, the shortest of one row and one token."""
    numbers = torch.Generator().manual_seed(4)
    if family in IMAGES:
        return [{"pixel_values": torch.randn(rows, 3, 16, 16, generator=numbers)} for rows in (1, 3)]
    asked = []
    for rows, length, hidden in (
        (1, 5, None),
        (2, 8, slice(-3, None)),
        (4, 11, slice(0, 2)),
        (1, 1, None),
        (3, 23, slice(-9, None)),
    ):
        ids = torch.randint(
            4, 300, (rows, 2, length) if head == "multiple_choice" else (rows, length), generator=numbers
        )
        mask = torch.ones_like(ids)
        if hidden is not None:
            mask[0, ..., hidden], ids[0, ..., hidden] = 0, 3
        batch = {"input_ids": ids, "attention_mask": mask}
        asked.append(batch | ({"decoder_input_ids": ids[:, : length // 2 + 1]} if family in SEQ2SEQ else {}))
    return asked


def texts(model: Any) -> list[torch.Tensor]:
    """Greedy and with beams, one row and several that begin at different places."""
    ids = torch.randint(4, 300, (2, 6), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :3], ids[0, :3] = 0, 3
    how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    return [
        model.generate(input_ids=ids[1:], attention_mask=mask[1:], num_beams=1, **how),
        model.generate(input_ids=ids, attention_mask=mask, num_beams=1, **how),
        model.generate(input_ids=ids, attention_mask=mask, num_beams=2, **how),
    ]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(*request.param, tmp_path_factory.mktemp("graph"))


def test_it_answers_as_the_trained_model_whatever_the_sizes(written: Written) -> None:
    """Held to the size of all answers: that of a single token is one number, which may be as good as none."""
    scale = {
        name: torch.cat([answer[name].flatten() for _, answer in written.answers]).square().mean().sqrt()
        for name in written.answers[0][1]
    }
    for asked, expected in written.answers:
        found = logits(written.graph(**asked))
        assert found.keys() == expected.keys()
        seen = asked["attention_mask"].bool() if "attention_mask" in asked else None
        for name, value in expected.items():
            one, other = value, found[name]
            assert one.shape == other.shape
            if seen is not None and written.head not in ("sequence_classification", "multiple_choice", "seq2seq"):
                one, other = one[seen], other[seen]  # at padding a model says what it likes
            assert (one - other).square().mean().sqrt() < 1e-5 * scale[name]


def test_it_writes_the_same_texts(written: Written) -> None:
    for expected, found in zip(written.texts, texts(written.graph) if written.texts else [], strict=True):
        assert torch.equal(expected, found)
    assert written.graph.caches == bool(written.texts)


def test_the_lines_of_its_card_run_without_peftkit(written: Written) -> None:
    if written.family in IMAGES:  # they ask for a picture
        return
    lines = written.exporter.example(written.folder.name, written.reading)
    script = f"import sys; sys.path = [one for one in sys.path if one]\n{lines}\nassert 'peftkit' not in sys.modules\n"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=written.folder.parent, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if written.head == "causal_lm":
        ids = tokenizer()("A text", return_tensors="pt").input_ids
        for _ in range(20):  # as the lines do, past what would end a text
            ids = torch.cat([ids, written.graph(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        assert done.stdout.strip() == tokenizer().decode(ids[0]).strip()


def test_what_it_wrote_holds_no_row_and_no_code(written: Written) -> None:
    names = {file.name for file in written.folder.iterdir()} - {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    parts = ("encoder", "decoder") if written.head == "seq2seq" else ("model",)
    graphs = {file.replace("model", part) for file in FILES[written.exporter.name] for part in parts}
    configs = {"config.json"} | ({"generation_config.json"} if written.texts else set())
    assert names == graphs | configs


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_folder_without_a_graph_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no .*model"):
        EXPORTERS[name].open(tmp_path, Reading("AutoModelForCausalLM", "a/base", trust_remote_code=True))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_damaged_graph_is_named(name: str, tmp_path: Path) -> None:
    config("llama").save_pretrained(tmp_path)
    (tmp_path / EXPORTERS[name].pattern.format("model")).write_bytes(b"damaged")
    with pytest.raises(ExportError, match="cannot be opened: "):
        EXPORTERS[name].open(tmp_path, Reading("AutoModelForCausalLM", "a/base"))


class Shouts:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("shouted"),)


def test_torch_files_are_not_opened_unless_the_user_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config("llama").save_pretrained(tmp_path)
    torch.save({"weights": Shouts()}, tmp_path / "model.pt2")
    reading = Reading("AutoModelForCausalLM", "a/base")
    with pytest.raises(ExportError, match=r"can run code that they hold.*--model.trust_remote_code"):
        Torch().open(tmp_path, reading)
    assert not Path("shouted").exists()


@pytest.mark.parametrize(
    ("task", "family", "said"),
    [
        ("speech_recognition", "whisper", "writing down speech is a loop of its own"),
        ("sequence_classification", "bart", "a bart that classifies looks for each row's last token"),
        ("sequence_classification", "bert", ""),
        ("causal_lm", "llama", ""),
        ("seq2seq", "t5", ""),
    ],
)
@pytest.mark.parametrize("name", EXPORTERS)
def test_what_it_does_not_serve_is_refused_by_name(name: str, task: str, family: str, said: str) -> None:
    refused = EXPORTERS[name].refuses(Task.model_validate(task), config(family), STRATEGY)
    assert refused.startswith(said)
    assert bool(refused) == bool(said)


def test_torch_alone_refuses_an_encoder_decoder_that_answers() -> None:
    task = Task.model_validate("question_answering")
    assert "the least length that a bart answers in" in EXPORTERS["torch"].refuses(task, config("bart"), STRATEGY)
    assert not EXPORTERS["onnx"].refuses(task, config("bart"), STRATEGY)


def test_a_model_with_code_of_its_own_is_refused() -> None:
    class OwnConfig(type(config("llama"))):  # type: ignore[misc]
        """As one from a model's folder."""

    refused = Onnx().refuses(Task.model_validate("causal_lm"), OwnConfig(), STRATEGY)
    assert refused.startswith("a model with Python code of its own (OwnConfig) is not traced")


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_extra_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftkit.exporters.base.find_spec", lambda asked: None if asked == package else object())
    said = rf"--to {name} needs {package}, which is not installed: pip install 'peftkit\[{name}\]'"
    with pytest.raises(ConfigError, match=said):
        EXPORTERS[name].open(tmp_path, Reading("AutoModelForCausalLM", "a/base"))


def test_no_more_threads_are_taken_than_torch_has(written: Written) -> None:
    part, threads = written.graph.main, torch.get_num_threads()
    if isinstance(part, OnnxPart):
        assert part.session.get_session_options().intra_op_num_threads == threads
    if isinstance(part, OpenVinoPart):
        assert part.compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert not part.compiled.get_property("ENABLE_CPU_PINNING")


SPEECHLESS = """
import socket, sys, time
sent = []
def refuse(*asked, **_): sent.append(asked); raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from peftkit.exporters import Exporter
for name in ("onnx", "openvino"):
    Exporter.model_validate(name).part()(Path(sys.argv[1], name) / ("model.onnx" if name == "onnx" else "openvino_model.xml"))
time.sleep(1)  # they send from threads of their own
assert not sent and not sys.modules["openvino_telemetry"]
"""


class Least(torch.nn.Module):
    """A model of one operation."""

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": inputs.relu()}


def test_nothing_is_sent_and_nothing_written_at_home(tmp_path: Path) -> None:
    for name in ("onnx", "openvino"):
        (tmp_path / name).mkdir()
        sizes = {"inputs": {0: torch.export.Dim.DYNAMIC}}
        file = tmp_path / name / EXPORTERS[name].pattern.format("model")
        EXPORTERS[name].trace(Least(), {"inputs": torch.ones(2, 2)}, sizes, file)
    home = tmp_path / "home"
    home.mkdir()
    kept = {**os.environ, "HOME": str(home), "CI": "", "XDG_CACHE_HOME": "", "ORT_DISABLE_TELEMETRY": ""}
    done = subprocess.run(
        [sys.executable, "-c", SPEECHLESS, str(tmp_path)], env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [file for file in home.rglob("*") if file.is_file()]


def test_a_run_goes_all_the_way(tmp_path: Path) -> None:
    found, model = trained_run(tmp_path, "distilbert", strategy={"name": "lora", "rank": 4})
    place = export(found.path, to="onnx")
    certificate = Certificate.read(place)
    assert (certificate.exporter, certificate.rows) == ("onnx", 6)
    assert certificate.figures.relative_error < 1e-5
    assert {"model.onnx", "model.onnx.data", "config.json"} < certificate.files.keys()
    assert "onnxruntime.InferenceSession" in (place / "README.md").read_text()
    opened = open_trained(place)
    assert (opened.context, opened.task.labels) == (128, ["a", "b", "c"])
    out = predict(place, Asked(str(tmp_path / "rows.jsonl"), tmp_path / "answers.jsonl"))
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    read = tokenizer()([row["text"] for row in answers], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(input_ids=read.input_ids, attention_mask=read.attention_mask).logits.softmax(-1)
    torch.testing.assert_close(
        torch.tensor([list(row["probabilities"].values()) for row in answers]), expected, atol=1e-5, rtol=0
    )


def test_a_program_of_torchs_is_certified_and_then_asks_for_trust(tmp_path: Path) -> None:
    found, _ = trained_run(tmp_path, "distilbert", strategy={"name": "lora", "rank": 4})
    place = export(found.path, to="torch")
    assert Certificate.read(place).figures.relative_error < 1e-5
    with pytest.raises(ExportError, match=r"--model\.trust_remote_code"):
        open_trained(place)
    assert open_trained(place, trust=True).model.config.num_labels == 3
