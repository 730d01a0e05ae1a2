"""What is the PyTorch model that equals ladder's dense decoder, and its training step?

Written as PyTorch users write it: fused query-key-value and gate-up projections, causal
scaled_dot_product_attention, fused AdamW. torch is the optional extra `torch`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # model/ops/norm.py


@dataclass(frozen=True)
class Sizes:
    d_model: int
    n_layers: int
    d_head: int
    ffn: int
    vocab: int
    seq_len: int
    rotary_theta: float


class Block(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        self.d_head = s.d_head
        self.mixer_norm = nn.RMSNorm(s.d_model, eps=EPSILON)
        self.qkv = nn.Linear(s.d_model, 3 * s.d_model, bias=False)
        self.mixer_out = nn.Linear(s.d_model, s.d_model, bias=False)
        self.ffn_norm = nn.RMSNorm(s.d_model, eps=EPSILON)
        self.gate_up = nn.Linear(s.d_model, 2 * s.ffn, bias=False)
        self.ffn_out = nn.Linear(s.ffn, s.d_model, bias=False)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.mixer_norm(x_BTD)).view(B, T, 3, D // self.d_head, self.d_head)
        q_BHTK, k_BHTK, v_BHTK = (part.transpose(1, 2) for part in qkv.unbind(2))
        y_BHTK = F.scaled_dot_product_attention(
            rotated(q_BHTK, cos_TK, sin_TK), rotated(k_BHTK, cos_TK, sin_TK), v_BHTK, is_causal=True
        )
        x_BTD = x_BTD + self.mixer_out(y_BHTK.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.ffn_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.ffn_out(F.silu(gate) * up)


def rotated(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat((a * cos_TK - b * sin_TK, b * cos_TK + a * sin_TK), dim=-1)


class Twin(nn.Module):
    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, s: Sizes):
        super().__init__()
        self.embed = nn.Embedding(s.vocab, s.d_model)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_layers))
        self.norm = nn.RMSNorm(s.d_model, eps=EPSILON)
        self.readout = nn.Linear(s.d_model, s.vocab, bias=False)
        half = s.d_head // 2
        rate_K = s.rotary_theta ** (-torch.arange(half) / half)
        angle_TK = torch.arange(s.seq_len)[:, None] * rate_K
        self.register_buffer("cos_TK", angle_TK.cos())
        self.register_buffer("sin_TK", angle_TK.sin())

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TK, self.sin_TK)
        logits_BTV = self.readout(self.norm(x_BTD))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    @torch.no_grad()
    def copy_from(self, params: Mapping[str, np.ndarray]) -> None:
        """ladder's parameters: (in, out) matrices, layers stacked on a leading Z."""

        def put(to: Tensor, *values: np.ndarray, leading: int) -> None:
            flat = [v.reshape(int(np.prod(v.shape[:leading])), -1).T for v in values]
            to.copy_(torch.from_numpy(np.concatenate(flat)).reshape(to.shape))

        self.embed.weight.copy_(torch.from_numpy(params["embed"]))
        self.norm.weight.copy_(torch.from_numpy(params["norm.gain"]))
        put(self.readout.weight, params["readout"], leading=1)
        for z, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            at = {k.removeprefix("repeat.0."): v[z] for k, v in params.items() if "repeat" in k}
            block.mixer_norm.weight.copy_(torch.from_numpy(at["mixer_norm.gain"]))
            block.ffn_norm.weight.copy_(torch.from_numpy(at["ffn_norm.gain"]))
            put(block.qkv.weight, at["mixer.q"], at["mixer.k"], at["mixer.v"], leading=1)
            put(block.mixer_out.weight, at["mixer.out"], leading=2)
            put(block.gate_up.weight, at["ffn.gate"], at["ffn.up"], leading=1)
            put(block.ffn_out.weight, at["ffn.out"], leading=1)


def training_step(
    model: Twin,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    clip_norm: float,
    compiled: bool,
) -> Callable[[np.ndarray, np.ndarray], float]:
    """(tokens, targets) -> the loss before the update. Matrices decay; tables and gains do not."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    held = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in held]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    run = torch.compile(model) if compiled else model

    def step(tokens_BT: np.ndarray, targets_BT: np.ndarray) -> float:
        loss = run(torch.from_numpy(tokens_BT).long(), torch.from_numpy(targets_BT).long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm, foreach=True)
        optimizer.step()
        return loss.item()

    return step
