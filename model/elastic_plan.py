"""Which span should each head have? Importances of what a dense model attends to, and the rules
that lose least of it at a bounded density (MoA, Fu et al. 2024).

The importance of an entry of an attention matrix is what the loss changes by, to first order, when
the entry is removed and its row normalised again. A rule loses the importance that it hides. One
rule is chosen for each head by integer programming: the least loss at each profiled length, the
density within its bounds at each, few different rules in a layer. Published with Gurobi, here
with scipy's solver.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from model.mixers import attention
from model.mixers.elastic_span import Rule, Spec
from model.ops.attention import MASKED
from model.spec import ModelSpec

EPSILON = float(np.finfo(np.float32).eps)  # beside 1 - A: a row whose weight is all on one entry
CELLS = 4  # ranges that each other length's loss is confined to, one after another: published


def importance(weight_BHTS: jax.Array, gradient_BHTS: jax.Array) -> jax.Array:
    """Change of the loss when an entry is removed: of attention weights and the loss's gradient in
    them. Position 0 sees one key, so there removing leaves nothing to normalise.
    """
    product = gradient_BHTS * weight_BHTS
    mean = jnp.sum(product, axis=-1, keepdims=True)
    change = -weight_BHTS * (gradient_BHTS - mean) / (1 - weight_BHTS + EPSILON)
    return change.at[..., 0, :].set(-product[..., 0, :])


def attention_importance(
    q_BTHK: jax.Array, k_BTJK: jax.Array, v_BTJK: jax.Array, dy_BTHK: jax.Array, *, scale: float
) -> jax.Array:
    """Importances (B, J, T, S) of causal attention whose output has the gradient dy; of the query
    heads that share keys, the one that changes the loss most.
    """
    B, T, H, K = q_BTHK.shape
    J = k_BTJK.shape[2]
    q, dy = (x.reshape(B, T, J, H // J, K).astype(jnp.float32) for x in (q_BTHK, dy_BTHK))
    score = scale * jnp.einsum("btjgk,bsjk->bjgts", q, k_BTJK.astype(jnp.float32))
    causal_TS = jnp.tril(jnp.ones((T, T), bool))
    weight = jax.nn.softmax(jnp.where(causal_TS, score, MASKED), axis=-1)
    gradient = jnp.einsum("btjgk,bsjk->bjgts", dy, v_BTJK.astype(jnp.float32))
    found = jnp.where(causal_TS, importance(weight, gradient), 0.0)
    largest = jnp.argmax(jnp.abs(found), axis=2, keepdims=True)
    return jnp.take_along_axis(found, largest, axis=2)[:, :, 0]


def pooled(importance_BHTS: np.ndarray, *, block: int) -> np.ndarray:
    """(H, n, n): mean over data, then size, then sums of blocks."""
    mean_HTS = np.abs(np.mean(np.asarray(importance_BHTS, np.float64), axis=0))
    H, T, _ = mean_HTS.shape
    if T % block:
        raise ValueError(f"{T} positions are no whole blocks of {block}; write a multiple of it")
    return mean_HTS.reshape(H, T // block, block, T // block, block).sum(axis=(2, 4))


def layout(rule: Rule, *, length: int, block: int, global_blocks: int = 1) -> np.ndarray:
    """(n, n): which blocks of keys a block of queries sees."""
    near = rule.blocks(length, block=block)
    i, j = np.indices((length // block, length // block))
    return (j <= i) & ((i - j < near) | (j < global_blocks))


def density(rule: Rule, *, length: int, block: int, global_blocks: int = 1) -> float:
    """Share of the keys that the last query sees: what decoding holds beside a dense head."""
    seen = layout(rule, length=length, block=block, global_blocks=global_blocks)
    return float(seen.sum(axis=1).max()) / len(seen)


def lost(blocks_Hnn: np.ndarray, rule: Rule, *, block: int, global_blocks: int = 1) -> np.ndarray:
    """(H,): importance in the blocks that a rule hides."""
    length = blocks_Hnn.shape[-1] * block
    seen = layout(rule, length=length, block=block, global_blocks=global_blocks)
    return np.sum(blocks_Hnn, axis=(1, 2), where=~seen)


def candidates(lengths: Sequence[int], *, step: int = 1024, slopes: int = 9) -> list[Rule]:
    """The grid of rules whose span is above 0 and at most the length, at every length."""
    low, high = min(lengths), max(lengths)
    offsets = np.linspace(-low, high, max(2, round((low + high) / step) + 1))
    found = [
        Rule(alpha=float(a), beta=float(b)) for a in offsets for b in np.linspace(0, 1, slopes)
    ]
    return [r for r in found if all(0 < r.alpha + r.beta * n <= n for n in lengths)]


@dataclass(frozen=True)
class Plan:
    """`rules` by layer and key-value head; loss and density by length."""

    rules: tuple[tuple[Rule, ...], ...]
    loss: Mapping[int, float]
    density: Mapping[int, float]


@dataclass(frozen=True)
class Profile:
    """What every rule would lose, and hold, at every profiled length."""

    rules: tuple[Rule, ...]
    loss_LHR: Mapping[int, np.ndarray]  # length -> (layers, heads, rules)
    density_R: Mapping[int, np.ndarray]

    def plan(self, chosen_LH: np.ndarray) -> Plan:
        def taken(loss_LHR: np.ndarray) -> float:
            return float(np.take_along_axis(loss_LHR, chosen_LH[..., None], axis=2).sum())

        return Plan(
            rules=tuple(tuple(self.rules[r] for r in layer) for layer in chosen_LH),
            loss={n: taken(x) for n, x in self.loss_LHR.items()},
            density={n: float(x[chosen_LH].mean()) for n, x in self.density_R.items()},
        )


def profile(
    blocks: Mapping[int, Sequence[np.ndarray]],
    rules: Iterable[Rule],
    *,
    block: int,
    global_blocks: int = 1,
) -> Profile:
    """From pooled importances: length -> one (H, n, n) for each layer."""
    rules, sizes = tuple(rules), {"block": block, "global_blocks": global_blocks}
    loss, dense = {}, {}
    for length, layers in blocks.items():
        if any(len(x[0]) * block != length for x in layers):
            raise ValueError(f"length {length} is not that of its importances in blocks of {block}")
        loss[length] = np.array([np.stack([lost(x, r, **sizes) for r in rules], 1) for x in layers])
        dense[length] = np.array([density(r, length=length, **sizes) for r in rules])
    return Profile(rules=rules, loss_LHR=loss, density_R=dense)


def plans(
    found: Profile, *, bound: float, slack: float = 0.9, rules_per_layer: int = 2
) -> list[Plan]:
    """Plans of which none is better at every length: each length's least loss, with the losses of
    the others confined to one range after another.

    `bound` is the mean density allowed at every length; a plan uses at least `slack` of it.
    """
    lengths = list(found.loss_LHR)
    program = _Program(found, bound=bound, slack=slack, rules_per_layer=rules_per_layer)
    alone = [program.least(n, {}) for n in lengths]
    best = [found.plan(chosen_LH) for chosen_LH in alone if chosen_LH is not None]
    if not best:
        raise ValueError(
            f"no choice of {len(found.rules)} rules has a density between {slack * bound:.3g} and "
            f"{bound:.3g} at every length; write a larger bound, or more rules"
        )
    edges = {
        n: np.linspace(min(p.loss[n] for p in best), max(p.loss[n] for p in best), CELLS + 1)
        for n in lengths
    }
    for n in lengths:
        others = [m for m in lengths if m != n]
        for cell in itertools.product(range(CELLS), repeat=len(others)):
            within = {m: (edges[m][c], edges[m][c + 1]) for m, c in zip(others, cell, strict=True)}
            if within and (chosen_LH := program.least(n, within)) is not None:
                best.append(found.plan(chosen_LH))
    different = list({plan.rules: plan for plan in best}.values())
    return [p for p in different if not any(_better(q, p) for q in different)]


def chosen(of: Sequence[Plan], unseen: Profile) -> Plan:
    """The plan that loses least at lengths that none was made for."""
    index = {rule: i for i, rule in enumerate(unseen.rules)}

    def loss(plan: Plan) -> float:
        picked_LH = np.array([[index[rule] for rule in layer] for layer in plan.rules])
        return sum(unseen.plan(picked_LH).loss.values())

    return min(of, key=loss)


def planned(
    spec: ModelSpec, plan: Plan, *, context: int, block: int, global_blocks: int = 1
) -> ModelSpec:
    """A model of attention or elastic layers with the plan's rule in every head. Layers that differ
    are no repeated unit, so its parameters have paths of their own.
    """
    if len(plan.rules) != spec.n_layers:
        raise ValueError(f"a plan of {len(plan.rules)} layers for {spec.n_layers}; write one each")
    blocks = []
    for layer, rules in zip(spec.blocks, plan.rules, strict=True):
        mixer = layer.mixer
        if not isinstance(mixer, attention.Spec | Spec) or mixer.kind == "attention" and mixer.bias:
            raise ValueError("a plan is for attention without biases; give such a model")
        elastic = Spec(
            d_head=mixer.d_head,
            queries_per_kv=mixer.queries_per_kv,
            rotary_theta=mixer.rotary_theta,
            qk_norm=mixer.qk_norm,
            rules=rules,
            context=context,
            block=block,
            global_blocks=global_blocks,
        )
        blocks.append(replace(layer, mixer=elastic))
    return replace(spec, first=(), repeat=tuple(blocks), last=())


def _better(q: Plan, p: Plan) -> bool:
    return all(q.loss[n] <= p.loss[n] for n in p.loss) and any(
        q.loss[n] < p.loss[n] for n in p.loss
    )


class _Program:
    """x (L, H, R) chooses a rule for each head; y (L, R) says that a layer uses a rule."""

    def __init__(self, found: Profile, *, bound: float, slack: float, rules_per_layer: int):
        self.found = found
        L, H, R = self.shape = next(iter(found.loss_LHR.values())).shape
        self.n_x, n_y = L * H * R, L * R
        one_each = np.kron(np.eye(L * H), np.ones(R))
        used = np.hstack([np.eye(self.n_x), -np.repeat(np.eye(n_y).reshape(L, R, n_y), H, axis=0)
                          .reshape(L * H * R, n_y)])  # fmt: skip
        few = np.kron(np.eye(L), np.ones(R))
        mean = np.stack([np.tile(d / (L * H), L * H) for d in found.density_R.values()])
        self.constraints = [
            LinearConstraint(self._on_x(one_each), 1, 1),
            LinearConstraint(used, -np.inf, 0),
            LinearConstraint(np.hstack([np.zeros((L, self.n_x)), few]), -np.inf, rules_per_layer),
            LinearConstraint(self._on_x(mean), slack * bound, bound),
        ]

    def least(self, length: int, within: Mapping[int, tuple[float, float]]) -> np.ndarray | None:
        """The (L, H) choice of least loss at a length, the others' losses within bounds; None if
        there is none.
        """
        loss = {n: x.reshape(1, -1) for n, x in self.found.loss_LHR.items()}
        more = [LinearConstraint(self._on_x(loss[n]), a, b) for n, (a, b) in within.items()]
        cost = self._on_x(loss[length])[0]
        done = milp(
            cost, constraints=[*self.constraints, *more], integrality=np.ones_like(cost),
            bounds=Bounds(0, 1),
        )  # fmt: skip
        if done.status == 2:  # infeasible
            return None
        if done.x is None:
            raise RuntimeError(f"the solver stopped without an answer: {done.message}")
        return done.x[: self.n_x].reshape(self.shape).argmax(axis=-1)

    def _on_x(self, rows: np.ndarray) -> np.ndarray:
        L, _, R = self.shape
        return np.hstack([rows, np.zeros((len(rows), L * R))])
