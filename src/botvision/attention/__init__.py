"""2-D relative self-attention: the layer, the function, and one file per implementation."""

from botvision.attention.functional import implementations, relative_attention_2d
from botvision.attention.implementation import Implementation
from botvision.attention.module import RelativeAttention2d

__all__ = ["Implementation", "RelativeAttention2d", "implementations", "relative_attention_2d"]
