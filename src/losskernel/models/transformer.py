"""A small transformer for multitask modular arithmetic, written for batching over parameters.

Pre-LayerNorm blocks as in Xiong et al., "On Layer Normalization in the Transformer Architecture"
(arXiv:2002.04745); attention as in Vaswani et al. (arXiv:1706.03762) without biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losskernel.errors import ConfigError

SEQUENCE_LENGTH = 4  # a, op, b, =
TASKS = 2  # addition, division


def _gathered(x: Tensor, rows: Tensor | None) -> Tensor:
    """``x`` itself, or those of its rows: ``(row, width)`` at ``(input, token)``."""
    return x if rows is None else F.embedding(rows, x)


class Attention(nn.Module):
    """Multi-head self-attention without biases: softmax(q k^T / sqrt(head width)) v, projected.

    Scores and mixtures are products and sums over broadcast axes. The fused kernel has no
    batching rule on the CPU, and a matrix product per input and head of four tokens is slower
    than the elementwise form.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, last_only: bool = False, rows: Tensor | None = None) -> Tensor:
        """Attend within each sequence.

        Args:
            x: normalized activations, shape ``(input, token, width)``, or ``(row, width)``.
            last_only: ask only with the last position; the result then has one token.
            rows: which row of ``x`` stands at each ``(input, token)``, if ``x`` has rows.

        Returns:
            Shape ``(input, token, width)``, or ``(input, 1, width)`` with ``last_only``.
        """
        by_head = (self.heads, x.shape[-1] // self.heads)
        asking, asking_rows = x, rows
        if last_only and rows is None:
            asking = x[:, -1:]
        elif last_only:
            asking_rows = rows[:, -1:]
        query = _gathered(self.query(asking), asking_rows)
        query = query.unflatten(-1, by_head).unsqueeze(2)  # input, asking, 1, head, d
        key = _gathered(self.key(x), rows).unflatten(-1, by_head).unsqueeze(1)  # input, 1, token...
        value = _gathered(self.value(x), rows).unflatten(-1, by_head).unsqueeze(1)
        scores = (query * key).sum(-1) * by_head[1] ** -0.5  # input, asking, token, head
        weights = torch.softmax(scores, dim=2).unsqueeze(-1)
        return self.out((weights * value).sum(2).flatten(-2))


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp_width)

    def forward(self, x: Tensor, last_only: bool = False, rows: Tensor | None = None) -> Tensor:
        """As :meth:`Attention.forward`, with activations that are not normalized yet."""
        residual = _gathered(x, rows)
        residual = residual[:, -1:] if last_only else residual
        x = residual + self.attention(self.norm_attention(x), last_only, rows)
        return x + self.mlp(self.norm_mlp(x))


class ArithmeticTransformer(nn.Module):
    """Answers ``a op b =`` modulo a prime, for addition and division.

    Parameter groups by name pattern: ``embed*`` (tokens and positions), ``blocks.*.attention.*``,
    ``blocks.*.mlp.*``, ``blocks.*.norm*``, ``norm_final*``, ``unembed*``.

    Args:
        prime: the modulus p.
        width: width of the residual stream.
        heads: attention heads; must divide ``width``.
        mlp_width: hidden width of the MLP.
        depth: number of blocks.
        shared_operands: True: an operand is the same token in both tasks (the standard setup).
            False: each task has its own operand tokens, so its own rows of the embedding.
        shared_outputs: True: both tasks answer with the same p classes. False: each task has its
            own p classes, so its own rows of the unembedding.

    Tokens, as :func:`losskernel.data.arithmetic.modular_table` numbers them: operands first
    (p, or 2p with addition's before division's), then "+", "/" and "=".

    Raises:
        ConfigError: ``heads`` does not divide ``width``, or a size is below 1.
    """

    def __init__(
        self,
        prime: int,
        width: int = 64,
        heads: int = 4,
        mlp_width: int = 256,
        depth: int = 1,
        shared_operands: bool = True,
        shared_outputs: bool = True,
    ):
        super().__init__()
        for name, value in (("width", width), ("mlp_width", mlp_width), ("depth", depth)):
            if value < 1:
                raise ConfigError(f"{name} = {value}: give a positive integer")
        if heads < 1 or width % heads:
            raise ConfigError(f"heads = {heads} does not divide width = {width}: choose a divisor")
        operands = prime if shared_operands else TASKS * prime
        classes = prime if shared_outputs else TASKS * prime
        self.embed_tokens = nn.Embedding(operands + TASKS + 1, width)
        self.embed_positions = nn.Embedding(SEQUENCE_LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(depth))
        self.norm_final = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, classes, bias=False)
        for embedding in (self.embed_tokens, self.embed_positions):
            nn.init.normal_(embedding.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position.

        Args:
            tokens: integer tokens, shape ``(input, 4)``.

        Returns:
            Logits, shape ``(input, class)``.
        """
        x, rows = self._embedded(tokens)
        for block in self.blocks[:-1]:
            x, rows = block(x, rows=rows), None
        x = self.blocks[-1](x, last_only=True, rows=rows)  # no other position is read
        return self.unembed(self.norm_final(x[:, 0]))

    def _embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings ``(input, token, width)``; or one row each for what differs, and the rows.

        Up to the first attention a token's activations depend on the token and its position alone,
        of which there are fewer pairs than there are tokens in a large batch.
        """
        vocabulary = self.embed_tokens.num_embeddings
        if tokens.numel() <= SEQUENCE_LENGTH * vocabulary:
            return self.embed_tokens(tokens) + self.embed_positions.weight, None
        pairs = self.embed_positions.weight[:, None] + self.embed_tokens.weight
        first_rows = torch.arange(SEQUENCE_LENGTH, device=tokens.device) * vocabulary
        return pairs.flatten(0, 1), tokens + first_rows
