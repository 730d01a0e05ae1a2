"""How long is a training step of ladder beside an equal PyTorch model on this CPU?

    pip install -e '.[torch]' && python benchmarks/step_against_torch.py

Every side is a process of its own, because malloc reads its settings at process start. First the
sides prove that they are equal: the same number of parameters and, from ladder's initial values,
the same losses over a few steps. Then they take turns; medians, quartiles and ratios are over
rounds. float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

PROVING = 5  # steps whose losses must agree
TOLERANCE = 1e-4  # nats: float32 sums in another order, over PROVING steps of Adam
SIZES = {  # name: d_model, layers, sequences, tokens of a sequence
    "d64": (64, 2, 16, 128),
    "d128": (128, 4, 16, 128),
    "d256": (256, 6, 8, 256),
}
QUICK = {  # sweeps/launch/machine.py gives these to ladder's workers, ladder.py to `ladder train`
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}
SIDES = {
    "ladder": QUICK,
    "ladder, documents isolated": QUICK,  # what runs train with: the mask that torch's side lacks
    "torch": {},
    "torch, ladder's allocator settings": QUICK,
    "torch.compile": {},
}
DEFAULT_SIDES = tuple(SIDES)[:4]


@dataclass
class Side:
    """A child process that makes steps when asked."""

    name: str
    process: subprocess.Popen[str]
    rounds: list[float] = field(default_factory=list)  # seconds a step

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, steps: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.hear()["seconds"] / steps


def compare(size: str, *, names: list[str], rounds: int, steps: int) -> None:
    sides: list[Side] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            infos = {}
            for name in names:
                command = [sys.executable, __file__, "--side", name, "--size", size, "--at", folder]
                env = {k: v for k, v in os.environ.items() if k not in QUICK}
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**env, **SIDES[name]},
                )
                sides.append(Side(name, process))
                infos[name] = sides[-1].hear()  # one after the other: they start quietly
            _prove_equal(infos)
            for side in sides:
                side.ask(steps)
            for turn in range(rounds):
                for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                    side.rounds.append(side.ask(steps))
        finally:
            for side in sides:
                side.process.kill()
                side.process.wait()
    _print(size, infos, sides)


def _prove_equal(infos: dict[str, dict[str, Any]]) -> None:
    reference = infos["ladder"]
    for name, info in infos.items():
        if info["params"] != reference["params"]:
            raise SystemExit(f"{name} has {info['params']} parameters, not {reference['params']}")
        apart = np.abs(np.subtract(info["losses"], reference["losses"])).max()
        if not apart <= TOLERANCE:
            raise SystemExit(f"{name}'s losses {info['losses']} are not {reference['losses']}")
    if not reference["losses"][-1] < reference["losses"][0]:
        raise SystemExit(f"nothing was learned: {reference['losses']}")


def _print(size: str, infos: dict[str, dict[str, Any]], sides: list[Side]) -> None:
    d_model, layers, B, T = SIZES[size]
    reference = infos["ladder"]
    low, high = reference["losses"][0], reference["losses"][-1]
    print(
        f"\nd_model {d_model}, {layers} layers, {B} x {T} tokens, {reference['params']:,} "
        f"parameters; losses agree over {PROVING} steps ({low:.5f} to {high:.5f})"
    )
    print(f"{'ms a step':<36}{'median':>8}{'quartiles':>18}{'ladder is faster by':>22}")
    for side in sides:
        quartiles = statistics.quantiles(side.rounds, n=4, method="inclusive")
        low, middle, high = (1e3 * q for q in quartiles)
        ratio = statistics.median(a / b for a, b in zip(side.rounds, sides[0].rounds, strict=True))
        row = f"{side.name:<36}{middle:>8.1f}{f'{low:.1f} - {high:.1f}':>18}"
        print(row + ("" if side is sides[0] else f"{ratio:>21.2f}x"))


# -- a side ----------------------------------------------------------------------------------------


def serve(name: str, *, size: str, at: Path) -> None:
    make = _ladder if name.startswith("ladder") else _torch
    step, params, info = make(name, size, at)
    losses = [step() for _ in range(PROVING)]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    print(json.dumps({"params": params, "losses": losses, **info}), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


Made = tuple[Callable[[], float], int, dict[str, str]]


def _spec(name: str, size: str):
    from model.archs import build
    from model.spec import Parametrisation
    from train.spec import BudgetSpec, DataSpec, OptimSpec, RunSpec, ScheduleSpec

    d_model, n_layers, B, T = SIZES[size]
    # standard parametrisation: muP starts the readout at zero, where any two models agree
    model = build("dense", d_model)
    (block,) = model.repeat
    model = replace(
        model,
        n_layers=n_layers,
        parametrisation=Parametrisation(kind="standard"),
        repeat=(replace(block, mixer=replace(block.mixer, qk_norm=False)),),
    )
    return RunSpec(
        model=model,
        data=DataSpec(seq_len=T, isolate_documents=name != "ladder"),
        budget=BudgetSpec(batch_tokens=B * T, tokens=10_000 * B * T),
        optim=OptimSpec(lr=1e-3),
        schedule=ScheduleSpec(kind="constant", warmup=0),
    )


def _batch(size: str, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    _, _, B, T = SIZES[size]
    rows = np.random.default_rng(0).integers(0, vocab, (B, T + 1), dtype=np.int32)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _ladder(name: str, size: str, at: Path) -> Made:
    import jax

    from train.programs import programs
    from train.schedule import hyper
    from train.step import initial_state

    spec = _spec(name, size)
    ready, _ = programs(spec, cache=at)
    host = initial_state(ready.model, spec.seed)
    np.savez(at / "params.npz", allow_pickle=False, **host["params"])
    state = jax.device_put(host, ready.shardings)
    tokens_BT, targets_BT = _batch(size, spec.model.vocab)
    batch = {
        "tokens_BT": tokens_BT,
        "targets_BT": targets_BT,
        "segments_BT": np.zeros_like(
            tokens_BT
        ),  # one document a row: the mask is paid, all is seen
        "weights_BT": np.ones(tokens_BT.shape, np.float32),
    }
    numbers = hyper(spec)

    def step() -> float:
        nonlocal state
        state, loss = ready.step(state, numbers, jax.device_put(batch))
        return float(loss)

    size_of = sum(v.size for v in host["params"].values())
    return step, size_of, {"version": f"jax {jax.__version__}"}


def _torch(name: str, size: str, at: Path) -> Made:
    import torch
    from torch_twin import Sizes, Twin, training_step

    spec = _spec(name, size)
    model, mixer = spec.model, spec.model.repeat[0].mixer
    with np.load(at / "params.npz") as file:
        params = dict(file)
    twin = Twin(
        Sizes(
            d_model=model.d_model,
            n_layers=model.n_layers,
            d_head=mixer.d_head,
            ffn=params["repeat.0.ffn.gate"].shape[-1],
            vocab=model.vocab,
            seq_len=spec.data.seq_len,
            rotary_theta=mixer.rotary_theta,
        )
    )
    twin.copy_from(params)
    optim = spec.optim
    train = training_step(
        twin,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        clip_norm=optim.clip_norm,
        compiled=name == "torch.compile",
    )
    tokens_BT, targets_BT = _batch(size, model.vocab)
    size_of = sum(p.numel() for p in twin.parameters())
    return lambda: train(tokens_BT, targets_BT), size_of, {"version": f"torch {torch.__version__}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--compile", action="store_true", help="add torch.compile (needs g++)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, size=args.size[0], at=args.at)
        return
    names = [*DEFAULT_SIDES, *(["torch.compile"] if args.compile else [])]
    for size in args.size or SIZES:
        compare(size, names=names, rounds=args.rounds, steps=args.steps)


if __name__ == "__main__":
    main()
