"""Losses against torch's own sums and formulas written down here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_curve
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torch.testing import assert_close

from peftkit.tasks.losses import balanced, balanced_several, summed, summed_distance, summed_several
from peftkit.tasks.thresholds import best_threshold

torch.manual_seed(0)
LOGITS = torch.randn(12, 3)
LABELS = torch.tensor([0, 1, 2, 0, 0, 0, 1, 0, 0, -100, 0, 0])
KNOWN = LABELS != -100
SEVERAL = torch.randint(0, 2, (12, 3))
WEIGHTS = [0.5, 2.0, 3.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_classes_cost_what_torch_says(smoothing, weights):
    weight = None if weights is None else torch.tensor(weights)
    expected = functional.cross_entropy(LOGITS, LABELS, weight=weight, label_smoothing=smoothing, reduction="sum")
    assert_close(summed(LOGITS, LABELS, smoothing, weights), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_factor_is_that_of_the_paper(gamma):
    right = LOGITS[KNOWN].softmax(-1)[range(11), LABELS[KNOWN]]
    expected = (-((1 - right) ** gamma) * right.log() * torch.tensor(WEIGHTS)[LABELS[KNOWN]]).sum()
    assert_close(summed(LOGITS, LABELS, weights=WEIGHTS, focal=gamma), expected)


def test_a_focal_loss_of_what_is_surely_right_has_a_gradient():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    summed(logits, torch.tensor([0]), focal=0.5).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_several_labels_cost_what_torch_says():
    expected = functional.binary_cross_entropy_with_logits(
        LOGITS, SEVERAL.float(), pos_weight=torch.tensor(WEIGHTS), reduction="sum"
    )
    assert_close(summed_several(LOGITS, SEVERAL, weights=WEIGHTS), expected)
    soft = functional.binary_cross_entropy_with_logits(LOGITS, SEVERAL * 0.8 + 0.1, reduction="sum")
    assert_close(summed_several(LOGITS, SEVERAL, smoothing=0.2), soft)


def test_the_focal_loss_of_several_labels():
    said = LOGITS.sigmoid()
    right = torch.where(SEVERAL == 1, said, 1 - said)
    assert_close(summed_several(LOGITS, SEVERAL, focal=2.0), (-((1 - right) ** 2) * right.log()).sum())


def test_a_label_that_is_not_known_does_not_count():
    some = SEVERAL.clone()
    some[0] = -100
    assert_close(summed_several(LOGITS, some), summed_several(LOGITS[1:], SEVERAL[1:]))


@pytest.mark.parametrize(
    ("kind", "of"), [("mse", functional.mse_loss), ("mae", functional.l1_loss), ("huber", functional.huber_loss)]
)
def test_distances_are_sums_over_the_values_that_are_known(kind, of):
    wanted = torch.randn(12, 3)
    gaps = wanted.clone()
    gaps[0, 1] = torch.nan
    known = ~gaps.isnan()
    assert_close(summed_distance(LOGITS, gaps, kind), of(LOGITS[known], wanted[known], reduction="sum"))


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits: summed(logits, torch.full((12,), -100), 0.1, WEIGHTS, 2.0),
        lambda logits: summed_several(logits, torch.full((12, 3), -100), 0.1, WEIGHTS, 2.0),
        *(
            lambda logits, kind=kind: summed_distance(logits, torch.full((12, 3), torch.nan), kind)
            for kind in ("mse", "huber")
        ),
    ],
)
def test_no_target_costs_nothing_and_has_a_graph(loss):
    logits = LOGITS.clone().requires_grad_()
    nothing = loss(logits)
    nothing.backward()
    assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_balanced_weights_are_those_of_scikit_learn_and_one_in_the_mean():
    labels = ["a"] * 7 + ["b"] * 2 + ["c"]
    found = balanced({"a": 7, "b": 2, "c": 1, "never": 0})
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert list(found.values()) == pytest.approx([*expected, 1.0])
    assert sum(found[label] for label in labels) / len(labels) == pytest.approx(1)


def test_balanced_weights_of_several_labels_make_yes_and_no_weigh_the_same():
    assert balanced_several({"a": 2, "b": 5, "never": 0, "always": 10}, 10) == {"a": 4, "b": 1, "never": 1, "always": 1}


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_one_of_the_best_f1(seed):
    draw = torch.Generator().manual_seed(seed)
    said = (torch.rand(30, generator=draw) * 10).round().div(10).tolist()  # with ties
    true = (torch.rand(30, generator=draw) < 0.3).tolist()
    precision, recall, _ = precision_recall_curve(true, said)
    best = max(2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True))
    threshold = best_threshold(said, true)
    assert f1_score(true, [p >= threshold for p in said], zero_division=0) == pytest.approx(best)


def test_ties_are_decided_towards_a_half_and_nothing_found_is_a_half():
    assert best_threshold([0.9, 0.4], [True, False]) == pytest.approx(0.65)
    assert best_threshold([0.9, 0.1, 0.8, 0.2], [True, False, True, False]) == pytest.approx(0.5)
    assert best_threshold([0.3, 0.9], [False, False]) == 0.5
    assert best_threshold([], []) == 0.5
