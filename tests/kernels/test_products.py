"""Products by another kernel are the same products, and which one is taken does not change once it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from peftkit.kernels import products
from peftkit.kernels.products import Shape, Table, choose, kept, product, product_back, product_outer

EXTENTS = [(300, 160, 224), (1100, 512, 16), (1100, 16, 512), (64, 512, 512), (3, 8, 5), (0, 512, 512)]


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Every shape is said to be faster one way."""
    monkeypatch.setattr(products, "is_faster", lambda usual, other: request.param)
    chosen = choose(tmp_path / "products.json")
    yield request.param
    chosen.remove()


def filled(*extents: int) -> Tensor:
    return torch.randn(*extents, generator=torch.Generator().manual_seed(sum(extents)))


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), EXTENTS)
def test_every_product_is_that_of_double_precision(told: bool, tokens: int, inputs: int, outputs: int) -> None:
    x, weight, bias = filled(tokens, inputs), filled(outputs, inputs), filled(outputs)
    gradient = filled(tokens, outputs)
    # A sum of n products of normal numbers is about sqrt(n) large; fp32 keeps 6e-8 of it at each addition.
    near = {"rtol": 1e-5, "atol": 2e-6 * max(1, tokens, inputs, outputs) ** 0.5}
    assert_close(product(x, weight, bias), (x.double() @ weight.double().T + bias).float(), **near)
    assert_close(product(x, weight), (x.double() @ weight.double().T).float(), **near)
    assert_close(product_back(gradient, weight), (gradient.double() @ weight.double()).float(), **near)
    assert_close(product_outer(gradient, x), (gradient.double().T @ x.double()).float(), **near)
    assert product_outer(gradient, x).is_contiguous()


def test_rows_may_lie_in_any_shape(told: bool) -> None:
    x, weight = filled(4, 96, 160), filled(224, 160)
    assert_close(product(x, weight), torch.stack([row @ weight.T for row in x]))
    cut = filled(4, 96, 320)[..., ::2]
    assert_close(product(cut, weight), cut.contiguous() @ weight.T)
    assert_close(product(filled(160), weight), filled(160) @ weight.T)
    assert_close(product(x, filled(160, 224).t()), x @ filled(160, 224))


def test_a_gradient_flows_where_one_is_wanted(told: bool) -> None:
    x, weight = filled(300, 160).requires_grad_(), filled(224, 160)
    product(x, weight).sum().backward()
    assert_close(x.grad, weight.sum(0).expand(300, 160))


def test_a_choice_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def measured(usual: object, other: object) -> bool:
        asked.append(len(asked) % 2 == 0)
        return asked[-1]

    monkeypatch.setattr(products, "is_faster", measured)
    shapes = [Shape("forward", 512, 512), Shape("back", 512, 512), Shape("outer", 16, 512)]
    first = Table(tmp_path / "a" / "table.json")
    found = [first.takes_onednn(shape) for shape in shapes + shapes]
    assert found == [True, False, True] * 2
    again = Table(tmp_path / "a" / "table.json")
    assert [again.takes_onednn(shape) for shape in shapes] == found[:3]
    assert len(asked) == 3


def test_a_damaged_file_is_measured_anew(tmp_path: Path) -> None:
    shape = Shape("forward", 64, 512)
    for content in ("{", "[]", json.dumps({shape.name: "oneDNN"})):
        (tmp_path / "table.json").write_text(content)
        table = Table(tmp_path / "table.json")
        assert table.takes_onednn(shape) in (True, False)
        assert json.loads((tmp_path / "table.json").read_text()) == {shape.name: table.known[shape.name]}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Table(tmp_path / "file" / "table.json").takes_onednn(Shape("outer", 16, 512)) in (True, False)


def test_the_last_choice_taken_off_leaves_torch_alone(tmp_path: Path) -> None:
    before = products._table
    first, second = choose(tmp_path / "1.json"), choose(tmp_path / "2.json")
    second.remove()
    assert products._table is first.table
    first.remove()
    assert products._table is before


def test_another_processor_has_its_own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    assert kept().parent == tmp_path / "products"
    assert products.processor() == products.processor()
