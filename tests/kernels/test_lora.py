"""A layer and its adapter computed as one: PEFT's outputs and gradients, and PEFT's own computation for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from peftkit.errors import ConfigError
from peftkit.kernels import lora
from peftkit.kernels.lora import hang_lora
from peftkit.strategies import Lora, Qlora
from tests.kernels.test_products import filled
from tests.tiny import tiny

SHAPES = [(40, 24, 56), (40, 56, 24), (40, 48, 48)]


@pytest.fixture(params=["folded", "thin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Adapters are folded into weights in fp32, or never, whatever the number of rows."""
    monkeypatch.setattr(lora, "FOLDING", 0.0 if request.param == "folded" else 1e9)
    yield


def layer(inputs: int, outputs: int, bias: bool = True, **settings: Any) -> Any:
    """A linear layer in PEFT's wrapper, whose adapter has learnt something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(inputs)
    whole = get_peft_model(
        nn.Sequential(nn.Linear(inputs, outputs, bias)), LoraConfig(r=4, target_modules=["0"], **settings)
    )
    return trained(whole)


def trained(model: nn.Module) -> Any:
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    return model


def four_bit(outputs: int, inputs: int, **settings: Any) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft import LoraConfig, get_peft_model

    dense = Linear4bit(inputs, outputs, quant_type="nf4", **settings)
    dense.weight = Params4bit(filled(outputs, inputs), requires_grad=False, quant_type="nf4").to("cpu")
    dense.support_avx512bf16_for_cpu = False
    return trained(get_peft_model(nn.Sequential(dense), LoraConfig(r=4, target_modules=["0"])))


def gradients(model: Any, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of everything that trains."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = model(x)
    (out * filled(*out.shape).to(out.dtype)).sum().backward()
    return [out.detach(), x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]  # type: ignore[list-item]


def assert_near(found: list[Tensor], expected: list[Tensor], share: float = 1e-6) -> None:
    """As near as another order of adding up fp32 numbers leaves them, measured by the whole tensor."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert float((one - other).norm()) <= share * (
            float(other.norm()) + 1e-4
        )  # a key's bias has no gradient but noise


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each layer that is computed as one."""
    calls: list[int] = []
    usual = lora._Lora.apply
    monkeypatch.setattr(lora._Lora, "apply", lambda *args: calls.append(1) or usual(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_a_layer_is_that_of_peft(
    way: None, rows: int, inputs: int, outputs: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = layer(inputs, outputs, bias)
    calls = counted(monkeypatch)
    for shape in ((rows, inputs), (2, rows, inputs), (0, inputs), (1, inputs), (inputs,)):
        expected = gradients(deepcopy(model), filled(*shape))
        hooks, _ = hang_lora(model, "on")
        assert_near(gradients(model, filled(*shape)), expected)
        hooks[0].remove()
    assert len(calls) == 5


@pytest.mark.parametrize("compress", [True, False], ids=["scales in 8 bits", "scales in fp32"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(40, 64, 128), (40, 128, 64)])
def test_a_4_bit_layer_is_that_of_peft(way: None, rows: int, inputs: int, outputs: int, compress: bool) -> None:
    model = four_bit(outputs, inputs, compress_statistics=compress)
    before = model.base_model.model[0].base_layer.weight.data.clone()
    expected = gradients(model, filled(rows, inputs))
    hang_lora(model, "on")
    for _ in range(2):
        assert_near(gradients(model, filled(rows, inputs)), expected)
    model.eval()
    with torch.no_grad():
        assert_near([model(filled(rows, inputs))], expected[:1])
    assert model.base_model.model[0].base_layer.weight.data.equal(before)


@pytest.mark.parametrize(
    "strategy", [Lora(rank=4), Lora(rank=4, bias="lora_only"), Lora(rank=4, rslora=True), Qlora(rank=4)]
)
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_model_is_that_of_peft(way: None, family: str, strategy: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family, vocab_size=320)
    model = trained(strategy.adapt(model))
    names = [(name, weight.shape) for name, weight in model.state_dict().items()]
    expected = losses(model)
    hooks, words = hang_lora(model, "auto")
    calls = counted(monkeypatch)
    assert_near(losses(model), expected, 1e-5)
    assert_near(losses(deepcopy(model)), expected, 1e-5)
    assert len(calls) == 2 * len(hooks) and words == [
        f"LoRA: {len(hooks)} of {len(hooks)} layers compute their adapter with them"
    ]
    assert [(name, weight.shape) for name, weight in model.state_dict().items()] == names
    for hook in hooks:
        hook.remove()
    assert_near(losses(model), expected)
    assert len(calls) == 2 * len(hooks)


def losses(model: Any) -> list[Tensor]:
    """The loss, and the gradient of all that trains, in the order of the parameters."""
    model.zero_grad()
    ids = torch.arange(4, 44).view(2, 20)
    labels = torch.tensor([0, 1]) if model.get_base_model().config.model_type == "bert" else ids
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def test_it_keeps_the_input_once_and_nothing_as_wide_as_the_output(way: None) -> None:
    kept: list[Tensor] = []
    model, x = layer(48, 56), filled(40, 48)
    hang_lora(model, "on")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(x)
    own = {weight.data_ptr() for weight in model.parameters()}
    activations = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert [tensor.data_ptr() for tensor in activations][:1] == [x.data_ptr()]
    assert sum(tensor.numel() for tensor in activations) <= x.numel() + 40 * 4


def test_activations_computed_again_give_the_same(way: None) -> None:
    model, x = layer(48, 56), filled(40, 48)
    expected = gradients(model, x)
    hang_lora(model, "on")
    for reentrant in (True, False):
        assert_near(gradients(lambda_module(model, reentrant), x), expected)


def lambda_module(model: nn.Module, reentrant: bool) -> Any:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = checkpoint(self.model, x, use_reentrant=reentrant)
            return found

    return Checkpointed()


def test_bf16_is_no_further_from_fp32_than_peft_is() -> None:
    model = layer(48, 56)
    expected = gradients(model, filled(400, 48))
    model.bfloat16()

    def errors(of: Any) -> list[float]:
        found = gradients(of, filled(400, 48).bfloat16())
        return [float((one.float() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]

    plain = errors(model)
    hang_lora(model, "on")
    # Rounding errors of single tensors scatter: a tenth more is none that anyone can tell.
    assert all(mine <= 1.1 * theirs for mine, theirs in zip(errors(model), plain, strict=True))


def disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: Any) -> None:
    model.merge_adapter()


def doubled(model: Any) -> None:
    from peft import LoraConfig

    model.add_adapter("second", LoraConfig(r=4, target_modules=["0"]))
    trained(model).base_model.set_adapter(["default", "second"])


def second(model: Any) -> None:
    doubled(model)
    model.set_adapter("second")


def hooked(model: Any) -> None:
    model.base_model.model[0].base_layer.register_forward_hook(lambda module, args, out: out + 1)


def cast(model: Any) -> None:
    model.base_model.model[0].base_layer.bfloat16()


@pytest.mark.parametrize("change", [disabled, merged, doubled, hooked, cast, second])
def test_what_changes_later_is_seen(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(48, 56)
    hang_lora(model, "on")
    calls = counted(monkeypatch)
    change(model)
    (inner,) = [module for module in model.modules() if "forward" in vars(module)]
    x = filled(40, 48).to(inner.base_layer.weight.dtype)
    found = model(x)
    assert_close(found, type(inner).forward(inner, x), rtol=1e-5, atol=1e-5)
    assert len(calls) == (1 if change is second else 0)


def test_under_autocast_peft_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(48, 56)
    hang_lora(model, "on")
    calls = counted(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(filled(40, 48)).dtype is torch.bfloat16
    assert not calls


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"use_dora": True}, "no plain LoRA"), ({"lora_dropout": 0.1}, "dropout"), ({"lora_bias": True}, "has a bias")],
)
def test_what_is_no_plain_adapter_stays_pefts(settings: dict[str, Any], reason: str) -> None:
    model = layer(48, 56, **settings)
    hooks, words = hang_lora(model, "auto")
    assert hooks == [] and reason in words[-1]
    with pytest.raises(ConfigError, match=reason):
        hang_lora(model, "on")


def test_a_model_without_adapters_is_left_alone() -> None:
    assert hang_lora(tiny("llama"), "auto") == ([], [])
    assert hang_lora(layer(48, 56), "off") == ([], [])
    with pytest.raises(ConfigError, match="nothing of this model has a LoRA adapter"):
        hang_lora(tiny("llama"), "on")


def test_the_output_may_be_changed_in_place(way: None) -> None:
    def run() -> list[Tensor]:
        x = filled(3, 40, 48).requires_grad_()
        out = model(x)
        out[filled(3, 40) > 0] = 0
        return list(torch.autograd.grad(out.pow(2).sum(), [x, *adapters]))

    model = layer(48, 56)
    adapters = [weight for weight in model.parameters() if weight.requires_grad]
    expected = run()
    hang_lora(model, "on")
    assert_near(run(), expected)


def test_a_second_gradient_is_refused() -> None:
    model, x = layer(48, 56), filled(40, 48).requires_grad_()
    hang_lora(model, "on")
    (first,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
