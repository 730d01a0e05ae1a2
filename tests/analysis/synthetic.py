"""Measurements whose law is known: observations in memory and run directories on disk."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from analysis.observations import Observations
from train.record import DONE, RunDir


@dataclasses.dataclass(frozen=True)
class Truth:
    """A Chinchilla surface at the scale of a demo: losses 2.5 to 4 nats, 60 to 600 tokens a
    parameter."""

    E: float = 1.2
    A: float = 60.0
    B: float = 900.0
    alpha: float = 0.36
    beta: float = 0.40

    def loss(self, N, D):
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    def optimum(self, C):
        """Closed form (G, K identities) for C = 6 N D."""
        s = self.alpha + self.beta
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / s)
        return G * (C / 6) ** (self.beta / s), (C / 6) ** (self.alpha / s) / G


def grid(truth: Truth, *, budgets=3, sizes=5, first=1e13, factor=3.0, span=4.0):
    """N and D of an isoFLOP grid centred on the optimum, sizes from 1/span to span times it."""
    rows = []
    for k in range(budgets):
        C = first * factor**k
        middle, _ = truth.optimum(C)
        rows += [(n, C / 6 / n) for n in middle * np.geomspace(1 / span, span, sizes)]
    return np.array(rows).T


def observations(N, D, loss, *, C=None, reason=None, cluster=None) -> Observations:
    ids = tuple(str(i) for i in range(len(N)))
    return Observations(
        source="synthetic",
        id=ids,
        columns={"N": N, "D": D, "C": 6 * N * D if C is None else C, "loss": loss},
        cluster=cluster or ids,
        seed=(0,) * len(N),
        reason=reason or (None,) * len(N),
        conventions={"C": "six_nd", "loss_unit": "nats/token"},
        rows=({},) * len(N),
    )


def write_run(
    root: Path,
    *,
    width: int,
    tokens: float,
    loss: float,
    status: str | None = DONE,
    reason=None,
    seed=0,
    **changes,
):
    """One run directory as the trainer leaves it; returns its id."""
    embedding = 2 * 256 * width
    blocks = 12 * width**2 * max(2, round(width / 64))
    per_token = 6 * (blocks + embedding / 2) + 6 * 256 * width * max(2, round(width / 64))
    spec = {
        "format": 1,
        "model": {"arch": "dense", "d_model": width, "n_layers": max(2, round(width / 64))},
        "optim": {"lr": 8e-3, "weight_decay": 0.1},
        "schedule": {"kind": "cosine"},
        "data": {
            "tokenizer": "bytes",
            "seq_len": 256,
            "sources": [{"kind": "stdlib", "path": None}],
        },
        "budget": {"tokens": int(tokens), "batch_tokens": 8192},
        "seed": seed,
    }
    for path, value in changes.items():
        group, _, leaf = path.partition("__")
        spec[group][leaf] = value
    run_id = hashlib.sha256(repr(spec).encode()).hexdigest()[:12]
    run = RunDir(root / run_id)
    run.start(
        spec=spec,
        env={
            "commit": "0" * 40,
            "diff": "",
            "versions": {"jax": "0.10.2"},
            "data": {"fingerprint": "f00dfeed"},
        },
        counts={
            "params": {
                "total": blocks + embedding,
                "non_embedding": blocks,
                "active": blocks + embedding,
            },
            "flops_per_token": {"six_nd": 6.0 * (blocks + embedding), "causal_attn": per_token},
        },
    )
    if status is not None:
        metrics = {
            "loss/train": loss * 0.99,
            "loss/val": loss,
            "bpb/val": loss / np.log(2),
            "tokens": tokens,
        }
        run.finish(status=status, reason=reason, metrics=metrics, seconds=tokens / 1e6)
    return run_id


def counts(width: int) -> tuple[float, float]:
    """N and FLOPs per token (causal_attn) of a width of the synthetic family."""
    layers = max(2, round(width / 64))
    blocks = 12 * width**2 * layers
    return blocks + 512 * width, 6 * (blocks + 256 * width) + 6 * 256 * width * layers


def write_sweep(
    root: Path,
    truth: Truth,
    *,
    budgets=(1e13, 3e13, 9e13),
    widths=(32, 48, 64, 96, 128),
    noise=0.003,
):
    """An isoFLOP sweep with one diverged and one unfinished run; returns the ids by budget."""
    rng = np.random.default_rng(0)
    ids = {}
    for k, C in enumerate(budgets):
        ids[C] = []
        for width in np.unique(np.round(np.array(widths) * 1.35**k / 16) * 16).astype(int):
            N, per_token = counts(width)
            D = round(C / per_token / 8192) * 8192
            loss = truth.loss(N, D) * np.exp(noise * rng.standard_normal())
            ids[C].append(write_run(root, width=int(width), tokens=D, loss=loss))
    write_run(
        root,
        width=64,
        tokens=4e7,
        loss=9.0,
        status="diverged",
        reason="non-finite loss at step 40",
        seed=1,
    )
    write_run(root, width=80, tokens=4e7, loss=9.0, status=None, seed=2)
    return ids
