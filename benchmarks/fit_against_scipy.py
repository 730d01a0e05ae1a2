"""How long does ladder's solver take beside a plain scipy implementation of the same protocol?

    pip install -e . scipy && python benchmarks/fit_against_scipy.py [--full]

The protocol is that of Besiroglu et al. 2024 (arXiv 2404.10102) on the 240 Chinchilla points they
extracted: the sum of Huber losses (delta 1e-3) of log residuals, ln L = logsumexp(a - alpha ln N,
b - beta ln D, e). Grid: L-BFGS-B from 4,500 starts, scipy's own differences for gradients.
Bootstraps: BFGS on 4,000 resamples from the published coefficients, gradients by autograd (by hand
where it is not installed). ladder does the grid twice: every start by itself, and with A, B, E
solved out as `ladder fit` does, where starts that differ in them only are one and are solved once.
Every side is a process; sides take turns on the same resamples and starts; figures are medians
over rounds. scipy does a part of the work, unless --full, scaled up linearly; ladder does all.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("LADDER_PUBLISHED", ROOT.parent / "shared" / "published"))
FILE = FOLDER / "chinchilla-epoch" / "svg_extracted_data.csv"
DELTA = 1e-3
LEAST_SQUARES = 10.0  # a delta beyond every residual of a start that is a guess
BOOTSTRAPS = 4000
PUBLISHED = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # a, b, e, ...
NAMES = ("A", "B", "E", "alpha", "beta")
SLOWEST = 1e-2  # stands for an exponent of 0, which has no logarithm
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDES = {  # name: its function and whether it is held to one core
    "scipy, exact gradient": ("scipy-exact", True),
    "scipy, as published": ("scipy-published", True),
    "ladder, 1 core": ("ladder", True),
    "ladder, all cores": ("ladder", False),
}


def points() -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """N, D, loss of 240 rows, and where they are from."""
    if FILE.exists():
        with FILE.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        N, C, loss = (
            np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss")
        )
        keep = loss < np.sort(loss)[-5]
        return N[keep], (C / 6 / N)[keep], loss[keep], "the published points of Hoffmann et al."
    rng = np.random.default_rng(0)
    N = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), 240))
    D = np.exp(rng.uniform(np.log(1e9), np.log(5e11), 240))
    loss = 1.8172 + 482.01 * N**-0.3478 + 2085.43 * D**-0.3658
    # tails as heavy as those of points read from a figure: a twentieth has five times the noise
    noise = 0.004 * rng.standard_normal(240) * np.where(rng.random(240) < 0.05, 5, 1)
    return N, D, loss * np.exp(noise), "a synthetic surface (LADDER_PUBLISHED has no file)"


def resamples(rows: int) -> np.ndarray:
    """(4000, rows) drawn row indices."""
    return np.random.default_rng(42).integers(rows, size=(BOOTSTRAPS, rows))


def grid() -> np.ndarray:
    """(4500, 5) starts a, b, e, alpha, beta of Hoffmann et al."""
    exponents, floors = np.arange(0, 2.5, 0.5), np.arange(-1, 1.5, 0.5)
    amplitudes = np.arange(0, 30, 5.0)
    return np.array(list(product(amplitudes, amplitudes, floors, exponents, exponents)))


def terms(theta: np.ndarray, ln_N: Any, ln_D: Any) -> tuple[Any, Any]:
    """ln L (M,) and the logs of its three terms (3, M)."""
    a, b, e, alpha, beta = theta
    parts = np.stack([a - alpha * ln_N, b - beta * ln_D, np.full_like(ln_N, e)])
    top = parts.max(0)
    return top + np.log(np.exp(parts - top).sum(0)), parts


def objective(theta: np.ndarray, ln_N: Any, ln_D: Any, y: Any) -> float:
    off = np.abs(y - terms(theta, ln_N, ln_D)[0])
    return float(np.where(off <= DELTA, 0.5 * off**2, DELTA * (off - 0.5 * DELTA)).sum())


def with_gradient(theta: np.ndarray, ln_N: Any, ln_D: Any, y: Any) -> tuple[float, np.ndarray]:
    f, parts = terms(theta, ln_N, ln_D)
    off = f - y
    pull = np.clip(off, -DELTA, DELTA)
    share = np.exp(parts - f) * pull
    size = np.abs(off)
    value = np.where(size <= DELTA, 0.5 * off**2, DELTA * (size - 0.5 * DELTA)).sum()
    a, b, e = share.sum(1)
    return float(value), np.array([a, b, e, -share[0] @ ln_N, -share[1] @ ln_D])


def autograd_gradient() -> Callable[..., Any] | None:
    """The gradient as the replication has it, or None where autograd is not installed."""
    try:
        import autograd.numpy as anp
        from autograd import grad
    except ImportError:
        return None

    def value(theta: Any, ln_N: Any, ln_D: Any, y: Any) -> Any:
        a, b, e, alpha, beta = theta
        f = anp.log(anp.exp(a - alpha * ln_N) + anp.exp(b - beta * ln_D) + anp.exp(e))
        off = anp.abs(y - f)
        return anp.sum(anp.where(off <= DELTA, 0.5 * off**2, DELTA * (off - 0.5 * DELTA)))

    return grad(value)


def scipy_side(part: str, *, bootstraps: int, starts: int) -> dict[str, Any]:
    from scipy.optimize import minimize

    N, D, loss, _ = points()
    ln_N, ln_D, y = np.log(N), np.log(D), np.log(loss)
    picks, begin = resamples(len(y))[:bootstraps], grid()
    # an even spread of the grid, not its first corner
    begin = begin[np.linspace(0, len(begin) - 1, starts).astype(int)]
    exact = part == "scipy-exact"
    gradient = None if exact else autograd_gradient()

    def boot(rows: np.ndarray) -> Any:
        args = (ln_N[rows], ln_D[rows], y[rows])
        if gradient is not None:
            return minimize(objective, PUBLISHED, args=args, jac=gradient, method="BFGS")
        return minimize(with_gradient, PUBLISHED, args=args, jac=True, method="BFGS")

    boot(picks[0])
    begun = time.perf_counter()
    booted = [boot(rows) for rows in picks]
    seconds_boot = time.perf_counter() - begun

    fun = with_gradient if exact else objective
    begun = time.perf_counter()
    ends = [
        minimize(fun, s, args=(ln_N, ln_D, y), jac=exact or None, method="L-BFGS-B") for s in begin
    ]
    seconds_grid = time.perf_counter() - begun
    reached = np.array([e.fun for e in ends])
    return {
        "bootstraps": seconds_boot * BOOTSTRAPS / bootstraps,
        "grid": seconds_grid * len(grid()) / starts,
        "gradient of bootstraps": "autograd" if gradient is not None else "by hand",
        "thetas": [untransformed(b.x) for b in booted],
        "objectives": [float(b.fun) for b in booted],
        "optimum": float(np.nanmin(reached)),
        "reached": float(np.mean(reached < np.nanmin(reached) * (1 + 1e-6))),
        "threads": 1,
    }


def untransformed(theta: np.ndarray) -> list[float]:
    return [*np.exp(theta[:3]).tolist(), *theta[3:].tolist()]


def ladder_side() -> dict[str, Any]:
    from analysis import varpro
    from analysis.coordinates import centred
    from analysis.laws import resolve
    from analysis.solve import solve

    N, D, loss, _ = points()
    law, x, y = resolve("chinchilla"), {"N": N, "D": D}, np.log(loss)
    where = centred(law, x, loss)
    counts_SM = np.stack([np.bincount(r, minlength=len(y)) for r in resamples(len(y))])

    def coordinates(theta: np.ndarray) -> np.ndarray:
        values = dict(zip(NAMES, untransformed(theta), strict=True))
        return where.coordinates(values | {k: max(values[k], SLOWEST) for k in ("alpha", "beta")})

    starts = np.stack([coordinates(s) for s in grid()])
    begin = np.broadcast_to(coordinates(PUBLISHED), (BOOTSTRAPS, 5))

    def run(starts_Pp: np.ndarray, weights: np.ndarray, delta: float = DELTA) -> Any:
        return solve(where, x, y=y, weights=weights, starts_Pp=starts_Pp, delta=delta)

    begun = time.perf_counter()
    run(begin[:2], counts_SM[:2])
    compiled = time.perf_counter() - begun
    begun = time.perf_counter()
    booted = run(begin, counts_SM)
    seconds_boot = time.perf_counter() - begun
    begun = time.perf_counter()
    # least squares first, as `ladder fit` descends: far from the optimum the Huber loss is creased
    near = run(starts, np.ones(len(y)), LEAST_SQUARES)
    ends = run(near.theta_Pp, np.ones(len(y)))
    seconds_grid = time.perf_counter() - begun
    others = [k for k, name in enumerate(law.names) if name not in law.linear]
    once = np.unique(starts[:, others], axis=0, return_index=True)[1]

    def projected() -> Any:
        seeds = varpro.seed(where, x, y, starts_Pp=starts[once], weights=np.ones(len(y)))
        coarse = run(seeds, np.ones(len(y)), 10 * DELTA)
        return run(coarse.theta_Pp, np.ones(len(y)))

    projected()  # compiles
    begun = time.perf_counter()
    few = projected()
    seconds_projected = time.perf_counter() - begun
    named = where.natural(booted.theta_Pp)
    best = ends.objective_P.min()
    return {
        "bootstraps": seconds_boot,
        "grid": seconds_grid,
        "projected": seconds_projected,
        "projected_optimum": float(few.objective_P.min()),
        "projected_reached": float(np.mean(few.objective_P < best * (1 + 1e-6))),
        "projected_starts": len(once),
        "compile": compiled,
        "thetas": np.stack([named[n] for n in NAMES], axis=1).tolist(),
        "objectives": booted.objective_P.tolist(),
        "converged": float(booted.converged_P.mean()),
        "optimum": float(best),
        "reached": float(np.mean(ends.objective_P < best * (1 + 1e-6))),
        "threads": len(os.sched_getaffinity(0)),
    }


def cold_fit(folder: Path) -> float:
    """Seconds of an ordinary `ladder fit` with its defaults, a fresh process."""
    N, D, loss, _ = points()
    file = folder / "points.csv"
    with file.open("w", newline="") as lines:
        out = csv.writer(lines)
        out.writerow(["N", "D", "loss"])
        out.writerows(np.stack([N, D, loss], axis=1).tolist())
    command = [sys.executable, "-m", "ladder", "fit", str(file), "--map", "N=N,D=D,loss=loss"]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--json", str(folder / "fit.json")], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    # 1 says that the answer is bad (points read from a figure do not obey the law within noise)
    if done.returncode not in (0, 1):
        raise SystemExit(f"ladder fit ended with status {done.returncode}: {done.stderr}")
    return seconds


def turn(side: str, alone: bool, sizes: list[str]) -> dict[str, Any]:
    """One side in a process of its own; on one core where it is to be alone there."""
    env = dict(os.environ)
    cores = sorted(os.sched_getaffinity(0))
    if alone:
        env |= dict.fromkeys(ONE_THREAD, "1")
        env["XLA_FLAGS"] = env.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *sizes],
        cwd=ROOT,
        env=env | {"PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores[-1:])) if alone else None,
    )
    if done.returncode:
        raise SystemExit(f"{side} ended with status {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Standard errors on the resamples that both sides did, and whose optima are lower."""
    count = len(theirs["thetas"])
    mine, other = np.array(ours["thetas"][:count]), np.array(theirs["thetas"])
    lower = np.array(theirs["objectives"]) / np.array(ours["objectives"][:count]) - 1
    print(f"  on the {count} resamples of both, standard errors ladder / scipy:")
    ratio = mine.std(0, ddof=1) / other.std(0, ddof=1)
    print("   ", "  ".join(f"{n} {r:.4f}" for n, r in zip(NAMES, ratio, strict=True)))
    print(
        f"    scipy's objective over ladder's - 1: median {np.median(lower):.1e}, worst for scipy"
        f" {lower.max():.1e}, worst for ladder {lower.min():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bootstraps", type=int, default=200, help="that scipy does of 4000")
    parser.add_argument("--starts", type=int, default=225, help="that scipy does of 4500")
    parser.add_argument("--full", action="store_true", help="scipy does all")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.full:
        args.bootstraps, args.starts = BOOTSTRAPS, len(grid())
    if args.side:
        scipy = {"bootstraps": args.bootstraps, "starts": args.starts}
        print(
            json.dumps(ladder_side() if args.side == "ladder" else scipy_side(args.side, **scipy))
        )
        return
    sizes = ["--bootstraps", str(args.bootstraps), "--starts", str(args.starts)]
    print(f"data: {points()[3]}; scipy does {args.bootstraps} of {BOOTSTRAPS} bootstraps and")
    print(f"{args.starts} of {len(grid())} starts, scaled up linearly")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    cold: list[float] = []
    for _ in range(args.rounds):
        for name, (side, alone) in SIDES.items():
            found[name].append(turn(side, alone, sizes))
        with tempfile.TemporaryDirectory() as folder:
            cold.append(cold_fit(Path(folder)))

    def median(name: str, what: str) -> float:
        return statistics.median(r[what] for r in found[name])

    print(f"\n{'side':24} threads  4000 bootstraps, s  4500 starts, s  optimum        starts at it")
    for name, rounds in found.items():
        boot, grid_s, one = median(name, "bootstraps"), median(name, "grid"), rounds[0]
        print(
            f"{name:24} {one['threads']:7d} {boot:19.2f} {grid_s:15.2f}  {one['optimum']:.10g}"
            f" {one['reached']:9.1%}"
        )
    for theirs, ours in product(list(SIDES)[:2], list(SIDES)[2:]):
        ratios = [median(theirs, w) / median(ours, w) for w in ("bootstraps", "grid")]
        solved_out = median(theirs, "grid") / median(ours, "projected")
        print(
            f"{theirs} / {ours}: bootstraps {ratios[0]:.1f}, grid {ratios[1]:.1f},"
            f" with amplitudes solved out {solved_out:.0f}"
        )
    for name in list(SIDES)[2:]:
        one = found[name][0]
        print(
            f"{name}, amplitudes solved out: {median(name, 'projected'):.3f} s for"
            f" {one['projected_starts']} distinct starts, {one['projected_reached']:.1%} reach"
            f" {one['projected_optimum']:.10g}"
        )
    first = found["ladder, all cores"][0]
    print(f"ladder: compilation {median('ladder, all cores', 'compile'):.2f} s, ", end="")
    print(f"{first['converged']:.1%} of bootstraps converged, standard errors of all 4000:")
    spread = np.array(first["thetas"]).std(0, ddof=1)
    print("   ", "  ".join(f"{n} {v:.4g}" for n, v in zip(NAMES, spread, strict=True)))
    for name in list(SIDES)[:2]:
        print(f"{name} (bootstraps' gradient {found[name][0]['gradient of bootstraps']}):")
        agreement(first, found[name][0])
    said = ", ".join(f"{s:.2f}" for s in cold)
    print(f"ladder fit from a cold shell, defaults: {statistics.median(cold):.2f} s ({said})")


if __name__ == "__main__":
    main()
