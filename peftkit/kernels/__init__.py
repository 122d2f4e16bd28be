"""The same numbers with less: what is hung on a model so that it computes no padding, no unused logits, no gradient of frozen
weights. Each file is one such thing; a model works without any of them, and equals itself with them.
"""
