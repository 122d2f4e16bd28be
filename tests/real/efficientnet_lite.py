"""EfficientNet-Lite0 (Liu, 2020) -> an ordinary transformers folder with the same outputs.

transformers has EfficientNet only with squeeze-and-excitation, which Lite leaves out: there, gates that are always open
(weights 0, a bias of 30 before the sigmoid, which is 1 to 13 digits) stand for none. Lite's activation is ReLU6.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

SIDE = 64
"""Pixels a side that the converted model is given: it has no fixed size, and ImageNet's 224 take twelve times as long."""
OPEN = 30.0
OUTSIDE = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}
INSIDE = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def convert(source: Path, target: Path) -> None:
    """Write `target`: weights, configuration, and an image processor that scales as this model was taught."""
    (file,) = source.glob("*.pth")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    model = transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6", image_size=SIDE,
            num_labels=len(stored["_fc.bias"]), dropout_rate=0.0, drop_connect_rate=0.0,
        )
    )  # fmt: skip
    weights = {renamed(name): value for name, value in stored.items()}
    weights |= {name: gate(name, value) for name, value in model.state_dict().items() if ".squeeze_excite." in name}
    model.load_state_dict(weights)
    model.save_pretrained(target)
    transformers.EfficientNetImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, include_top=False, resample=2,
        image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3,
    ).save_pretrained(target)  # fmt: skip


def renamed(name: str) -> str:
    *path, end = name.split(".")
    if path[0] != "_blocks":
        return f"{OUTSIDE[path[0]]}.{end}"
    return f"efficientnet.encoder.blocks.{path[1]}.{INSIDE[path[2]]}.{end}"


def gate(name: str, value: Tensor) -> Tensor:
    return torch.full_like(value, OPEN if name.endswith("expand.bias") else 0.0)
