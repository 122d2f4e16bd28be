"""Models made whole although ZeRO-3 is set up, under which transformers cuts every model that it makes into shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed as bridge


@contextmanager
def whole_weights() -> Iterator[None]:
    """Inside, transformers does not see the HfDeepSpeedConfig; afterwards it does again."""
    kept = bridge._hf_deepspeed_config_weak_ref
    bridge.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        bridge._hf_deepspeed_config_weak_ref = kept
