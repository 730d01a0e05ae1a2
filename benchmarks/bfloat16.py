"""Is 200 steps in bfloat16 stable, for every architecture, and what does it end with?

    python -m benchmarks.bfloat16 [--archs A,B] [--root runs-bfloat16]

Every name at d_model 32, 200 steps of 512 tokens, once in float32 and once with
`execution.compute_dtype=bfloat16`: same seed, same batches. Prints a table; finished runs are read,
not trained again. Exit status 1 where a run does not end as `done` or ends above where it began.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from model import archs
from train.loop import train
from train.paths import put
from train.record import DONE, RunDir
from train.spec import RunSpec

DTYPES = ("float32", "bfloat16")


def spec(arch: str, dtype: str) -> RunSpec:
    model = archs.build(arch, 32)
    farthest = 0 if model.series is None else max(model.series.horizons)
    changes = {
        "data.seq_len": max(64, 2 * farthest),
        "budget.tokens": 102_400,
        "budget.batch_tokens": 512,
        "evaluation.tokens": 8_192,
        "execution.compute_dtype": dtype,
        "execution.log_every": 10,
    }
    return put(RunSpec(model=model), changes)


def ended(arch: str, dtype: str, root: Path) -> dict[str, Any]:
    """Losses of one run; a compute type does not change a run's identity, so each has a root."""
    run = spec(arch, dtype)
    train(run, root=root / dtype)
    found = RunDir(root / dtype / run.run_id).read()
    losses = [row["loss/train"] for row in found.metrics() if "loss/train" in row]
    last = (found.result or {}).get("metrics", {})
    return {
        "status": found.status,
        "first": losses[0] if losses else None,
        "last": losses[-1] if losses else None,
        "validation": last.get("loss/val"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--archs", default=",".join(archs.names()))
    parser.add_argument("--root", type=Path, default=Path("runs-bfloat16"))
    given = parser.parse_args()
    print("| | steps 1-10 | steps 191-200 | validation | float32: steps 191-200 | validation |")
    print("|---" * 6 + "|")
    unstable = []
    for arch in given.archs.split(","):
        wide, narrow = (ended(arch, dtype, given.root) for dtype in DTYPES)
        cells = [narrow[k] for k in ("first", "last", "validation")]
        cells += [wide[k] for k in ("last", "validation")]
        print(
            f"| {arch} | " + " | ".join("-" if x is None else f"{x:.3f}" for x in cells) + " |",
            flush=True,
        )
        if narrow["status"] != DONE or narrow["last"] >= narrow["first"]:
            unstable.append(arch)
    if unstable:
        print(f"not stable: {', '.join(unstable)}", file=sys.stderr)
    return bool(unstable)


if __name__ == "__main__":
    sys.exit(main())
