"""Preference accuracy is the share of margins above 0, a tie counting half."""

from __future__ import annotations

import math

from peftkit.metrics import PreferenceAccuracy


def test_share_and_means():
    margins = [1.0, -2.0, 0.0, 3.0]
    rows = [{"margin": margin, "chosen_reward": margin + 1, "rejected_reward": 1.0} for margin in margins]
    assert PreferenceAccuracy().compute(rows) == {
        "preference_accuracy": 2.5 / 4,
        "preference_accuracy/margin": 0.5,
        "preference_accuracy/chosen_reward": 1.5,
        "preference_accuracy/rejected_reward": 1.0,
    }


def test_margins_alone_and_margins_that_are_unknown_or_no_numbers():
    assert PreferenceAccuracy().compute([{"margin": 2.0}, {"margin": None}]) == {
        "preference_accuracy": 1,
        "preference_accuracy/margin": 2,
    }
    assert list(PreferenceAccuracy().compute([{"margin": 0.0}])) == [
        "preference_accuracy",
        "preference_accuracy/margin",
    ]
    assert math.isnan(PreferenceAccuracy().compute([{"margin": None}])["preference_accuracy"])
    diverged = PreferenceAccuracy().compute([{"margin": math.nan}])
    assert diverged["preference_accuracy"] == 0 and math.isnan(diverged["preference_accuracy/margin"])
