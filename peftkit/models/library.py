"""What the models' files take from the middle of transformers, imported without what DETR's matching loss and torchao's weights
alone need."""

from peftkit.lazy import deferred

with (
    deferred("scipy.optimize", "linear_sum_assignment"),  # a third of a second, and 20 MB
    deferred("torchao.prototype.safetensors.safetensors_support", "flatten_tensor_state_dict"),  # a second and a half
):
    from transformers import PreTrainedModel
    from transformers.modeling_utils import local_torch_dtype
    from transformers.quantizers.base import get_keys_to_not_convert

__all__ = ["PreTrainedModel", "get_keys_to_not_convert", "local_torch_dtype"]
