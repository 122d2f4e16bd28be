"""Handwritten digits: EfficientNet-Lite0, taught on ImageNet, against the majority and logistic regression on the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from tests.real.conftest import Train
from tests.real.scores import before_and_after

pytestmark = pytest.mark.real
TRAIN, VALIDATION = 600, 200


def saved(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    """A folder of images by class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((64, 64)).save(folder / f"{label}/{number}.png")
    return str(folder)


def test_it_beats_the_majority(train: Train, efficientnet: str, tmp_path: Path) -> None:
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.images))
    learnt, asked = order[:TRAIN], order[TRAIN : TRAIN + VALIDATION]
    run = train(
        model=efficientnet,
        task="image_classification",
        strategy="head_only",
        data={
            "train": saved(tmp_path / "train", digits.images[learnt], digits.target[learnt]),
            "validation": saved(tmp_path / "validation", digits.images[asked], digits.target[asked]),
        },
        batch={"total": 20, "micro": 20},
        epochs=4,
        optim={"name": "adamw", "lr": 1e-2},
        eval={"batch": 50, "every": 1000},
    )
    before, after = before_and_after(run, "accuracy")
    majority, pixels = (
        model.fit(digits.data[learnt], digits.target[learnt]).score(digits.data[asked], digits.target[asked])
        for model in (DummyClassifier(), LogisticRegression(max_iter=1000))
    )
    print(f"accuracy {after:.3f}; before {before:.3f}, majority {majority:.3f}, pixels {pixels:.3f}")
    assert after > majority + 0.6
