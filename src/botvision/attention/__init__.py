"""2-D relative self-attention: the module, the formula, and one file per implementation."""

from botvision.attention.functional import implementations, relative_attention_2d
from botvision.attention.module import RelativeAttention2d

__all__ = ["RelativeAttention2d", "implementations", "relative_attention_2d"]
