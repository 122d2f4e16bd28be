"""Rows over HTTP: the answers of `peftkit predict`, and none of the server's own files."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.flows.test_export import trained_run
from tests.serving.running import Running, alike, chat_run, exported, predicted, running, write
from tests.tiny import save_image, save_tiny

ROWS = [{"text": f"the row of number {number} " + "and so on " * (number % 5)} for number in range(24)]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether it is the answer that stands beside a row."""
    return found.keys() == {"prediction", "probabilities"} and alike(found, {name: expected[name] for name in found})


@pytest.fixture(scope="module")
def expected(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return predicted(labels, ROWS, tmp_path_factory.mktemp("predicted"))


def test_a_list_and_single_rows_have_the_answers_of_predict(labelling: Running, expected: list[dict[str, Any]]) -> None:
    found = labelling.post("/predict", ROWS).json()
    assert all(map(same, found, expected))
    assert same(labelling.post("/predict", ROWS[5]).json(), expected[5])
    assert labelling.post("/predict", []).json() == []


def test_many_at_once_share_batches_and_mix_nothing_up(labelling: Running, expected: list[dict[str, Any]]) -> None:
    lane = labelling.service.models["labels"].row_lane
    assert lane
    answers, sizes = lane.answers, []

    def counted(rows: Any) -> Any:
        sizes.append(len(rows))
        return answers(rows)

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            asking = [client.post(f"{labelling.url}/predict", json=ROWS[number % 24]) for number in range(32)]
            return await asyncio.gather(*asking, client.post(f"{labelling.url}/predict", json=ROWS))

    lane.answers = counted
    try:
        *single, listed = asyncio.run(crowd())
    finally:
        lane.answers = answers
    for number, found in enumerate(single):
        assert same(found.json(), expected[number % 24])
    assert all(map(same, listed.json(), expected))
    assert sum(sizes) == 32 + 24
    assert max(sizes) == 4
    assert len(sizes) < 40  # most of them were not alone


def test_a_row_that_cannot_be_answered_says_why(labelling: Running, expected: list[dict[str, Any]]) -> None:
    first, second = labelling.post("/predict", [{"text": ""}, ROWS[0]]).json()
    assert first == {"error": "no 'text'"}
    assert same(second, expected[0])
    for body, status, said in (
        ({"text": ""}, 400, "no 'text'"),
        ({"words": "x"}, 400, "the request lacks a column"),
        ([1, 2], 400, "valid dictionary"),
        ("hello", 400, "valid"),
    ):
        found = labelling.post("/predict", body)
        assert (found.status_code, said in found.json()["error"]["message"]) == (status, True), found.text


def test_a_row_that_breaks_the_model_harms_no_other(labels: Path, expected: list[dict[str, Any]]) -> None:
    with running({"labels": labels}, batch=4) as found:
        lane = found.service.models["labels"].row_lane
        assert lane
        answers = lane.answers

        def raising(rows: Any) -> Any:
            if any(row["text"] == "poison" for row in rows):
                raise RuntimeError("secret words")
            return answers(rows)

        lane.answers = raising
        *good, bad = found.post("/predict", [*ROWS, {"text": "poison"}]).json()
        assert all(map(same, good, expected))
        assert bad == {"error": "the model cannot compute it (RuntimeError)"}
        single = found.post("/predict", {"text": "poison"})
        assert single.status_code == 500
        assert "secret" not in single.text


def test_chats_can_be_asked_as_rows_too(chatting: Running, chats: Any) -> None:
    found = chatting.post("/predict?model=two", {"prompt": "sum"}).json()
    assert found == {"generated": chats.answers["two"][1]}
    assert "nothing to predict" in chatting.post("/predict?model=base", {"prompt": "sum"}).json()["error"]["message"]


def test_images_come_as_bytes_and_no_path_is_read(tmp_path: Path) -> None:
    files = [save_image(tmp_path / f"{number}.png", number) for number in range(8)]
    rows = [{"image": file, "label": "ab"[number % 2]} for number, file in enumerate(files)]
    write(tmp_path / "images.jsonl", rows)
    data = {"train": str(tmp_path / "images.jsonl"), "holdout": 0.5, "cache": str(tmp_path / "cache")}
    base = save_tiny(tmp_path / "vit", "vit", num_labels=2)
    found, _ = trained_run(tmp_path, "vit", model={"path": str(base)}, task="image_classification", data=data)
    place = exported(found.path, "merged")
    expected = predicted(place, [{"image": file} for file in files], tmp_path)
    with running({"images": place}) as service:
        content = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
        answers = service.post("/predict", [{"image": f"data:image/png;base64,{one}"} for one in content]).json()
        assert all(map(same, answers, expected))
        assert same(service.post("/predict", {"image": {"bytes": content[3]}}).json(), expected[3])
        for value in (files[0], f"file://{files[0]}", {"path": files[0]}, {"bytes": files[0]}, {"path": None}, 7):
            for column in ("image", "img", "file_name"):  # usual names of the column are found, too
                refused = service.post("/predict", {column: value})
                assert refused.status_code == 400, (column, value, refused.text)
                assert files[0] not in refused.text


def test_texts_of_an_encoder_decoder(tmp_path: Path) -> None:
    """Written by `generate`, some at a time, and the same as rows and as completions."""
    base = save_tiny(tmp_path / "base", "t5")
    sources = [f"the {'very ' * number}small cat" for number in range(6)]
    write(tmp_path / "texts.jsonl", [{"source": source, "target": "yes"} for source in sources])
    data = {"train": str(tmp_path / "texts.jsonl"), "holdout": 0.5, "cache": str(tmp_path / "cache")}
    own = {
        "model": {"path": str(base)},
        "task": {"name": "seq2seq", "decoder_start": 3},
        "data": data,
        "generate": {"max_new_tokens": 12},
    }
    (tmp_path / "t5").mkdir()
    found, _ = trained_run(tmp_path / "t5", "t5", **own)
    expected = [row["generated"] for row in predicted(found.path, [{"source": one} for one in sources], tmp_path)]
    assert len(set(expected)) > 1
    with running({"texts": found.path}, batch=3) as service:
        answers = service.post("/predict", [{"source": one} for one in sources]).json()
        assert [answer["generated"] for answer in answers] == expected
        written = service.post("/v1/completions", {"prompt": sources}).json()["choices"]
        assert [choice["text"] for choice in written] == expected


def test_chats_need_no_model_of_their_own(tmp_path: Path) -> None:
    """A run is served as it lies, without an export."""
    run = chat_run(tmp_path / "chat")
    (expected,) = predicted(run, [{"prompt": "loud film"}], tmp_path)
    with running({"chat": run}) as service:
        body = {"messages": [{"role": "user", "content": "loud film"}]}
        found = service.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == expected["generated"]
