"""Rows with true and predicted labels, as metrics read them and as scikit-learn does."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

LABELS = ["a", "b", "c"]
one_label = st.sampled_from(LABELS)
some_labels = st.lists(one_label, unique=True)
pairs = st.lists(st.tuples(one_label, one_label), min_size=1, max_size=40)
label_sets = st.lists(st.tuples(some_labels, some_labels), min_size=1, max_size=40)


def labelled(found):
    """Records of pairs of the true and the predicted."""
    return [{"label": label, "prediction": prediction} for label, prediction in found]


def indicators(found):
    """Pairs of lists of labels as scikit-learn's two matrices, a row each."""
    return tuple(np.array([[name in pair[at] for name in LABELS] for pair in found], dtype=int) for at in (0, 1))


def distributed(seed, rows, labels, several=False):
    """Records with probabilities, and the same as the truth's matrix and the probabilities' matrix."""
    generator = np.random.default_rng(seed)
    said = generator.random((rows, len(labels)))
    said = said if several else said / said.sum(1, keepdims=True)
    if several:
        truth = generator.random(said.shape) < said
    else:
        truth = np.eye(len(labels), dtype=bool)[generator.integers(len(labels), size=rows)]
    names = [[labels[at] for at in np.flatnonzero(row)] for row in truth]
    records = [
        {"label": label if several else label[0], "probabilities": probabilities}
        for label, probabilities in zip(names, said.tolist(), strict=True)
    ]
    return records, truth, said
