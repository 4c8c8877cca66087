"""One repeated layer: attention, then feed-forward, each in its branch of the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import Attention, Surroundings
from .config import TransformerConfig
from .feedforward import FeedForward
from .norms import make_norm


class Block(nn.Module):
    """x + attention, then x + feed-forward, with norms where `norm.placement` says.

    pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x))); none: x + f(x). Where a part's config has
    no residual connection, "x +" is left out. Maps (batch, length, d_model) to the same shape and dtype. Positions are
    the model's matter: they come with the surroundings.
    """

    def __init__(self, config: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        width, placement = config.d_model, config.norm.placement
        self.residual = config.attention.residual, config.feedforward.residual
        before, behind = placement in ("pre", "sandwich"), placement in ("post", "sandwich")
        self.behind_sum = placement == "post"
        self.attention_norm = make_norm(width, config.norm) if before else nn.Identity()
        self.attention = Attention(width, config.attention, norm=config.norm, layer=layer)
        self.attention_post_norm = make_norm(width, config.norm) if behind else nn.Identity()
        self.feedforward_norm = make_norm(width, config.norm) if before else nn.Identity()
        self.feedforward = FeedForward(width, config.feedforward)
        self.feedforward_post_norm = make_norm(width, config.norm) if behind else nn.Identity()

    def forward(self, x: Tensor, surroundings: Surroundings | None = None) -> Tensor:
        around_attention, around_feedforward = self.residual
        mixed = self.attention(self.attention_norm(x), surroundings=surroundings)
        x = self._joined(x if around_attention else None, mixed, self.attention_post_norm)
        fed = self.feedforward(self.feedforward_norm(x))
        return self._joined(x if around_feedforward else None, fed, self.feedforward_post_norm)

    def _joined(self, x: Tensor | None, branch: Tensor, norm: nn.Module) -> Tensor:
        if self.behind_sum:
            return norm(branch if x is None else x + branch)
        branch = norm(branch)
        return branch if x is None else x + branch
