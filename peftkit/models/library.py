"""What the models' files take from the middle of transformers, imported without what a matching loss of DETR alone needs."""

from peftkit.lazy import deferred

with deferred("scipy.optimize", "linear_sum_assignment"):  # a third of a second, and 20 MB
    from transformers import PreTrainedModel
    from transformers.modeling_utils import local_torch_dtype

__all__ = ["PreTrainedModel", "local_torch_dtype"]
