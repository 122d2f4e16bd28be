"""Images with labels: files of every kind, pixels as the model's own processor makes them, BatchNorm that holds still."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoImageProcessor

from peftkit.config.run import Run
from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.load import load
from peftkit.strategies import Strategy
from peftkit.tasks import ImageClassification, Task
from peftkit.tasks.base import RowError
from peftkit.tasks.pictures import pixels, stacked
from tests.tiny import IMAGES, image, save_image, save_tiny, tiny
from tests.trained import shake

LABELS = ("cat", "dog", "owl")
PROCESSORS = {
    "ViT": {"size": {"height": 24, "width": 24}},
    "ConvNext": {"size": {"shortest_edge": 24}, "crop_pct": 0.8},
    "EfficientNet": {"size": {"height": 24, "width": 24}, "include_top": True},
    "Bit": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
}


@pytest.fixture
def rows(tmp_path):
    return [{"image": save_image(tmp_path / f"{n}.png", n), "label": LABELS[n % 3]} for n in range(4)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {family: save_tiny(folder / family, family, num_labels=3) for family in IMAGES}


def processor_of(folder, kind="ViT", **settings):
    words = {"image_processor_type": f"{kind}ImageProcessor", **PROCESSORS[kind], **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(words))
    return AutoImageProcessor.from_pretrained(folder)


def batch_of(rows, base, task):
    processor = AutoImageProcessor.from_pretrained(base)
    return task.collate([task.encode(row, processor, 0) for row in rows], processor)


def loaded(base, task, strategy="full"):
    strategy = Strategy.model_validate(strategy)
    found = load(Model(path=str(base)), task, strategy, torch.float32, 0)
    return found, strategy.adapt(found.model, found.fresh)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_stored_pixels_become_what_the_processor_makes_of_the_file(kind, tmp_path):
    file = save_image(tmp_path / "a.png", 1, width=40, height=30)
    processor = processor_of(tmp_path, kind)
    stored = pixels({"image": file}, processor)
    expected = processor(Image.open(file), return_tensors="pt")["pixel_values"]
    assert (stored.dtype, stored.shape) == (np.uint8, (24, 24, 3))
    assert_close(stacked([stored], processor), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", IMAGES)
def test_the_loss_is_transformers_mean_times_the_rows(family, rows, bases):
    task = ImageClassification(labels=list(LABELS))
    batch = batch_of(rows, bases[family], task)
    model = tiny(family, num_labels=3).eval()
    with torch.no_grad():
        ours, theirs = task.loss(model(**task.inputs(batch)), batch), model(**batch).loss
    assert_close(ours, theirs * 4)
    assert task.targets(batch) == 4


@pytest.mark.parametrize("family", ["resnet", "efficientnet"])
def test_a_rows_loss_does_not_hang_on_the_rows_beside_it(family, rows, bases):
    task = ImageClassification(labels=list(LABELS))
    _, model = loaded(bases[family], task)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    together = batch_of(rows, bases[family], task)
    apart = [batch_of([row], bases[family], task) for row in rows]
    model.train()
    whole = task.loss(model(**task.inputs(together)), together)
    assert_close(whole, sum(task.loss(model(**task.inputs(one)), one) for one in apart), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_batch_statistics_are_learnt_where_they_are_asked_for(rows, bases):
    task = ImageClassification(labels=list(LABELS), batch_statistics=True)
    _, model = loaded(bases["resnet"], task)
    before = {name: value.clone() for name, value in model.named_buffers() if name.endswith("running_mean")}
    model(**task.inputs(batch_of(rows, bases["resnet"], task)))
    after = dict(model.named_buffers())
    assert before
    assert not any(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("family", "adapted"), [("resnet", "convolution"), ("efficientnet", "conv"), ("convnext", "pwconv1")]
)
def test_lora_merges_into_what_was_trained(family, adapted, rows, bases):
    task = ImageClassification(labels=[*LABELS, "elk"])
    base, model = loaded(bases[family], task, {"name": "lora", "rank": 2})
    assert any(adapted in name and "lora_A" in name for name, _ in model.named_parameters())
    assert all(name.startswith("classifier") for name in base.fresh)
    inputs = task.inputs(batch_of(rows, bases[family], task))
    shake(model).eval()
    expected = model(**inputs).logits
    merged = Strategy.model_validate({"name": "lora", "rank": 2}).merge(model)
    assert_close(merged.eval()(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (4, 4)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "no 'image'"),
        (None, "no 'image'"),
        ("/not/there.png", "its image's file is not there"),
        (b"no image", "its file cannot be read as an image"),
        ([1, 2, 3], "'image' is no path and no rows of numbers from 0 to 255"),
        ([[300]], "'image' is no path and no rows of numbers from 0 to 255"),
        ({"bytes": b"GIF89a"}, "its file cannot be read as an image"),
    ],
)
def test_what_is_no_image_says_why_without_its_content(value, why, tmp_path):
    with pytest.raises(RowError) as raised:
        pixels({"image": value}, processor_of(tmp_path))
    assert str(raised.value) == why


def test_a_file_that_breaks_off_is_broken(tmp_path):
    file = tmp_path / "a.png"
    save_image(file, 1, width=60, height=60)
    file.write_bytes(file.read_bytes()[:800])
    with pytest.raises(RowError, match="its image is broken"):
        pixels({"image": str(file)}, processor_of(tmp_path))


def test_a_file_its_bytes_and_its_points_are_one_image(tmp_path):
    file, processor = tmp_path / "a.png", processor_of(tmp_path)
    save_image(file, 3)
    forms = [str(file), file.read_bytes(), {"bytes": file.read_bytes(), "path": None}, image(3), Image.open(file)]
    found = [pixels({"image": form}, processor) for form in forms]
    assert all((one == found[0]).all() for one in found)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    upright = Image.fromarray(np.array(image(5), dtype=np.uint8))
    turned, exif = upright.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    turned.save(tmp_path / "a.png", exif=exif)
    processor = processor_of(tmp_path)
    assert (pixels({"image": str(tmp_path / "a.png")}, processor) == pixels({"image": upright}, processor)).all()


def test_grey_and_transparent_images_have_three_channels(tmp_path):
    processor = processor_of(tmp_path)
    for mode in ("L", "RGBA", "P", "1"):
        assert pixels({"image": Image.new(mode, (30, 20))}, processor).shape == (24, 24, 3)


def test_images_of_different_shapes_are_refused_with_the_way_out(tmp_path):
    processor = processor_of(tmp_path, "Bit", do_center_crop=False)
    with pytest.raises(ModelError, match="different shapes; give it one size"):
        pixels({"image": image(0)}, processor)


def test_only_training_sees_images_altered(rows, bases):
    task = ImageClassification(labels=list(LABELS), flip=1)
    features = task.encode(rows[0], AutoImageProcessor.from_pretrained(bases["vit"]), 0)
    flipped = task.learning().vary(features, None, Random(1))
    assert task.vary(features, None, Random(1)) is features
    assert (flipped["image"] == features["image"][:, ::-1]).all()
    assert Task.model_validate(task.learning().model_dump()) == task


def test_a_crop_is_a_part_in_the_same_size_and_drawn_by_the_seed(rows, bases):
    task = ImageClassification(labels=list(LABELS), crop=0.5).learning()
    features = task.encode(rows[0], AutoImageProcessor.from_pretrained(bases["vit"]), 0)
    once, again, other = (task.vary(features, None, Random(seed))["image"] for seed in (1, 1, 2))
    assert once.shape == features["image"].shape
    assert (once == again).all()
    assert not (once == other).all()


def test_a_row_in_words_is_the_images_size_and_its_label(rows, bases):
    task = ImageClassification(labels=list(LABELS))
    processor = AutoImageProcessor.from_pretrained(bases["resnet"])
    pieces = task.pieces(task.encode(rows[1], processor, 0), processor)
    assert pieces == [("image of 32 x 32", False), (" -> ", False), ("dog", True)]


def test_several_labels_and_numbers_are_learnt_of_images_too(rows, bases):
    several = [{**row, "label": label} for row, label in zip(rows, (["cat", "dog"], ["owl"], [], ["cat"]), strict=True)]
    task = ImageClassification().fit(several)
    batch = batch_of(several, bases["vit"], task)
    model = loaded(bases["vit"], task)[1]
    theirs = model(pixel_values=batch["pixel_values"], labels=batch["labels"].float()).loss
    assert_close(task.loss(model(**task.inputs(batch)), batch), theirs * 12)


def test_without_pillow_the_settings_say_what_to_install(monkeypatch):
    monkeypatch.setattr("peftkit.tasks.pictures.is_there", lambda: False)
    run = Run.model_validate({"task": "image_classification", "data": {"train": "x"}})
    assert "--task image_classification needs Pillow: pip install 'peftkit[image]'" in list(run.problems())
