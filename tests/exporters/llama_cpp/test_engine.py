"""llama.cpp itself: what it has read of a row is not computed again, and no row depends on another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftkit.errors import ModelError
from peftkit.exporters.llama_cpp.engine import CHUNK, Engine, common
from tests.exporters.llama_cpp.files import rows, small, written


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(small("Llama", max_position_embeddings=1024), tmp_path_factory.mktemp("engine"))


def test_rows_do_not_depend_on_each_other(file: Path) -> None:
    first, second = rows()["input_ids"].tolist()
    with Engine(file, exact=True) as engine:
        together = engine.logits([first, second[:7]], [40, 7])
    with Engine(file, exact=True) as engine:
        assert torch.equal(engine.logits([second[:7]], [7])[0], together[1])
        assert torch.equal(engine.logits([first], [40])[0], together[0])


def test_a_row_goes_on_from_what_it_had_in_common(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(1, 30, 0)["input_ids"][0].tolist()
    with Engine(file, exact=True) as engine:
        expected = engine.logits([whole], [30])[0]
    with Engine(file, exact=True) as engine:
        engine.logits([[*whole[:20], 5, 6, 7]], [1])
        calls, decode = [], engine.llama.llama_decode
        monkeypatch.setattr(
            engine.llama, "llama_decode", lambda context, batch: calls.append(batch.n_tokens) or decode(context, batch)
        )
        found = engine.logits([whole], [2])[0]
    assert calls == [10]
    torch.testing.assert_close(found, expected[-2:], atol=1e-4, rtol=1e-4)


def test_a_long_text_is_read_in_parts(file: Path, tmp_path: Path) -> None:
    model = small("Llama", max_position_embeddings=1024)
    ids = rows(1, CHUNK * 2 + 3, 0)["input_ids"]
    with Engine(file, exact=True) as engine, torch.no_grad():
        found = engine.logits([ids[0].tolist()], [CHUNK + 5])[0]
        torch.testing.assert_close(found, model(input_ids=ids).logits[0, -CHUNK - 5 :], atol=1e-4, rtol=1e-4)


def test_a_damaged_file_is_one_error(file: Path, tmp_path: Path) -> None:
    for name, content in {"cut": file.read_bytes()[:-20_000], "other": b"no model", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{tmp_path / name}: llama.cpp cannot read it"):
            Engine(tmp_path / name)


@pytest.mark.parametrize(("first", "second", "count"), [([1, 2], [1, 2, 3], 2), ([1, 5], [1, 2], 1), ([], [1], 0)])
def test_common_beginnings(first: list[int], second: list[int], count: int) -> None:
    assert common(first, second) == count
