"""`encoder_only` trains what only the encoder uses, and a head that was newly made."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import ModelError
from peftkit.strategies import EncoderOnly
from tests.strategies.names import NAMES, matching, tiny_on, training
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", ENCODERS + SEQ2SEQ)
def test_exactly_the_encoder_trains(family: str, device: str) -> None:
    model = EncoderOnly().adapt(tiny_on(device, family))
    assert training(model) == matching(model, NAMES[family].encoder, fixed=NAMES[family].fixed)


@pytest.mark.parametrize("family", DECODERS)
def test_a_model_without_encoder_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"--strategy encoder_only: .* has no encoder"):
        EncoderOnly().adapt(tiny(family))


def test_the_refusal_names_what_fits() -> None:
    with pytest.raises(ModelError, match=r"transformer\.h \(decoder, layers 0-1\).*decoder_only, full, layerwise"):
        EncoderOnly().adapt(tiny("gpt2"))


def test_a_fresh_head_trains_too() -> None:
    model = tiny("bart", head="sequence_classification")
    head = matching(model, "classification_head")
    assert training(EncoderOnly().adapt(model, sorted(head))) == matching(model, NAMES["bart"].encoder) | head


def test_a_step_changes_the_encoder_alone() -> None:
    model = EncoderOnly().adapt(tiny("t5"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.arange(5, 15)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == matching(model, r"encoder\.")
