"""Sounds with labels: one channel at the model's rate, whatever the file; a row's loss does not hang on those beside it."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from peftkit.config.run import Run
from peftkit.config.sections import Model
from peftkit.models.load import load
from peftkit.models.processor import load_processor
from peftkit.strategies import Strategy
from peftkit.tasks import AudioClassification
from peftkit.tasks.base import RowError
from peftkit.tasks.sounds import extractor, longest, samples, stacked
from tests.tiny import ears, save_sound, save_tiny, sound, tiny

LABELS = ["no", "yes"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    made = {family: save_tiny(folder / family, family) for family in ("wav2vec2", "whisper")}
    return made | {"group": save_tiny(folder / "group", "wav2vec2", feat_extract_norm="group")}


@pytest.fixture
def rows(tmp_path):
    seconds = (0.1, 0.25, 0.06, 0.18)
    return [
        {"audio": save_sound(tmp_path / f"{n}.wav", n, length), "label": LABELS[n % 2]}
        for n, length in enumerate(seconds)
    ]


def loaded(base, rows, **settings):
    """The task as a run has it, its base, and the encoded rows."""
    task = AudioClassification(**settings)
    config = tiny_config(base)
    task = task.bind(config).fit(rows)
    found = load(Model(path=str(base)), task, Strategy.model_validate("full"), torch.float32, 0)
    return task, found, [task.encode(row, found.processor, 0) for row in rows]


def tiny_config(base):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base)


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_the_loss_is_transformers_mean_times_the_rows(family, bases, rows):
    task, base, features = loaded(bases[family], rows)
    batch = task.collate(features, base.processor)
    theirs = base.model(**batch).loss * 4
    assert_close(task.loss(base.model(**task.inputs(batch)), batch), theirs)
    assert task.targets(batch) == 4
    assert all(name.startswith(("projector", "classifier")) for name in base.fresh)


@pytest.mark.parametrize("family", ["wav2vec2", "group", "whisper"])
def test_a_rows_loss_does_not_hang_on_the_rows_beside_it(family, bases, rows):
    task, base, features = loaded(bases[family], rows)
    whole = task.collate(features, base.processor)
    apart = [task.collate([one], base.processor) for one in features]
    losses = [task.loss(base.model(**task.inputs(one)), one) for one in apart]
    assert_close(task.loss(base.model(**task.inputs(whole)), whole), sum(losses), rtol=1e-5, atol=1e-5)


def test_only_models_that_hear_the_padding_get_sounds_of_one_length(bases, rows):
    given = {family: loaded(bases[family], rows)[0].pad_to for family in bases}
    assert given == {"wav2vec2": 0, "whisper": 0, "group": pytest.approx(0.25)}


def test_what_the_model_reads_is_what_its_extractor_makes_of_the_sound(bases, rows):
    for family in ("wav2vec2", "whisper"):
        task, base, features = loaded(bases[family], rows)
        reader = extractor(base.processor)
        expected = reader(soundfile.read(rows[1]["audio"])[0], sampling_rate=16_000, return_tensors="pt")
        name = reader.model_input_names[0]
        assert_close(task.collate(features[1:2], base.processor)[name], expected[name])


def test_two_channels_at_another_rate_are_the_tone_that_was_recorded(tmp_path):
    times = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * times)
    soundfile.write(tmp_path / "a.wav", np.stack([tone * 0.6, tone * 0.2], 1), 44_100, subtype="FLOAT")
    wave = samples({"audio": str(tmp_path / "a.wav")}, ears(), 30)[:, 0]
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert (len(wave), wave.dtype) == (16_000, np.float32)
    np.testing.assert_allclose(wave[100:-100], expected[100:-100], atol=1e-3)


def test_a_file_its_bytes_and_its_samples_are_one_sound(tmp_path):
    file, wave = tmp_path / "a.wav", sound(1, 0.1)
    soundfile.write(file, np.array(wave), 16_000, subtype="DOUBLE")
    forms = [
        str(file),
        file.read_bytes(),
        {"bytes": file.read_bytes(), "path": None},
        wave,
        {"array": wave, "sampling_rate": 16_000},
    ]
    found = [samples({"audio": form}, ears(), 30) for form in forms]
    assert all((one == found[0]).all() for one in found)


def test_no_more_than_the_first_seconds_are_heard(tmp_path):
    file = save_sound(tmp_path / "a.wav", 1, 2.0, rate=8_000)
    whole, part = (samples({"audio": file}, ears(), seconds) for seconds in (30, 0.5))
    assert (len(whole), len(part)) == (32_000, 8_000)
    np.testing.assert_allclose(part[:-100], whole[:7_900], atol=1e-4)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "no 'audio'"),
        ([], "no 'audio'"),
        ("/not/there.wav", "its sound's file is not there"),
        (b"no sound", "its file cannot be read as a sound"),
        (["a"], "'audio' is no path and no list of samples"),
        ([0.0] * 100, "its sound is shorter than 0.025 seconds"),
        ([float("nan")] * 1000, "its sound holds what are no samples (NaN, infinity, or more than two axes)"),
    ],
)
def test_what_is_no_sound_says_why_without_its_content(value, why):
    with pytest.raises(RowError) as raised:
        samples({"audio": value}, ears(), 30)
    assert str(raised.value) == why


def test_a_file_without_samples_is_empty(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    with pytest.raises(RowError, match="its sound is empty"):
        samples({"audio": str(tmp_path / "a.wav")}, ears(), 30)


def test_the_longest_sound_is_found_past_broken_ones(rows):
    assert longest([{"audio": "/not/there.wav"}, *rows, {"audio": None}]) == pytest.approx(0.25)


def test_masked_time_is_for_training_and_is_asked_for(bases, rows):
    _, plain, _ = loaded(bases["wav2vec2"], rows)
    _, masked, _ = loaded(bases["wav2vec2"], rows, time_mask=0.1)
    found = [(base.model.config.apply_spec_augment, base.model.config.mask_time_prob) for base in (plain, masked)]
    assert found == [(False, 0), (True, 0.1)]


def test_padding_is_silence_behind_a_mask():
    waves = [np.array(sound(n, length), dtype=np.float32)[:, None] for n, length in enumerate((0.05, 0.1))]
    batch = stacked(waves, ears())
    assert batch["attention_mask"].sum(1).tolist() == [800, 1600]
    assert not batch["input_values"][0, 800:].any()


def test_a_row_in_words_is_the_sounds_length_and_its_label(bases, rows):
    task, base, features = loaded(bases["whisper"], rows)
    assert task.pieces(features[1], base.processor) == [("sound of 0.2 s", False), (" -> ", False), ("yes", True)]


def test_the_processor_of_a_model_that_also_writes_is_found(bases):
    processor = load_processor(Model(path=str(bases["whisper"])), str(bases["whisper"]), "audio")
    assert extractor(processor).model_input_names == ["input_features"]


def test_layers_of_both_families_are_found():
    from peftkit.models.inspect import stacks

    for family in ("wav2vec2", "whisper"):
        assert [(one.layers, one.side) for one in stacks(tiny(family, head="audio"))] == [(2, "encoder")]


def test_without_soundfile_the_settings_say_what_to_install(monkeypatch):
    monkeypatch.setattr("peftkit.tasks.sounds.is_there", lambda: False)
    for name in ("audio_classification", "speech_recognition"):
        run = Run.model_validate({"task": name, "data": {"train": "x"}})
        assert f"--task {name} needs soundfile: pip install 'peftkit[audio]'" in list(run.problems())
