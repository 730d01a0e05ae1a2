"""Every architecture side by side: text at equal training FLOPs, recall, state tracking, cost.

    python -m benchmarks.zoo --tiny --archs dense,gpt2

Writes docs/zoo.md, docs/zoo.json and docs/figures/zoo.svg (with --tiny, zoo_tiny.*). First every
shape is compiled and timed and the wall time of the rest is printed (--estimate stops there); then
the runs are trained as two sweeps under --root, which skip what is finished, so that the same
command goes on where a killed one was. Runs are those of the `ladder` front door: `ladder table`
and `ladder status` read the same root.
"""

import argparse
import dataclasses
import platform
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from benchmarks import zoo_page
from benchmarks.zoo_measure import compiled_over_counted, estimate, known, measure
from benchmarks.zoo_plan import CONVENTION, Zoo, by_arch, plans, tasks
from benchmarks.zoo_results import gather
from model import archs
from parallelism.errors import InputError
from sweeps.launch import machine
from sweeps.launch.local import sweep
from train.environment import environment
from train.programs import shape_key
from train.record import write_json

FULL = {"budgets": (1e10, 3e10, 9e10), "widths": (16, 24, 32), "seeds": (0, 1, 2)}
TINY = {
    "budgets": (6e9, 1.2e10, 2.4e10),
    "widths": (16, 24),
    "seeds": (0, 1),
    "task_width": 32,
    "reference": (32, 128, 4),
    "out": "zoo_tiny",
}


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        return run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    zoo = _zoo(args)
    root, docs = args.root, args.docs
    text, task, left_out = plans(zoo)
    made = [plan for plan in (text, task) if plan is not None]
    for arch, why in left_out.items():
        _say(f"left out: {arch}: {why}")
    if not made:
        raise InputError("--archs", ",".join(zoo.archs), "nothing can be run; see above")

    # Cost
    measured = known(root) if args.page else measure(zoo, made, root=root, say=_say)
    workers = args.workers or len(machine.cores())
    seconds = estimate(made, measured, workers=workers)
    for plan in made:
        _say(f"{plan.name}: {len(plan.runs)} runs, about {seconds[plan.name] / 60:.0f} minutes")
    if args.estimate:
        return 0

    # Runs
    for plan in [] if args.page else made:
        if sweep(plan, root, workers=workers, retries=0).interrupted:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 130

    # Page
    found = gather(zoo, text, task, root=root, say=_say)
    for arch in found:
        if arch not in left_out:
            found[arch]["cost"] = measured.get(shape_key(zoo.reference_run(arch)), {})
    for arch, runs in by_arch(text).items() if text else ():
        found[arch]["compiled_over_counted"] = compiled_over_counted(runs[len(runs) // 2].spec)
    kept = {arch: one for arch, one in found.items() if arch not in left_out}
    value = _value(args, zoo, kept, left_out)
    figure = docs / "figures" / f"{zoo.out}.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    write_json(docs / f"{zoo.out}.json", value)
    zoo_page.draw(value, zoo, figure)
    page = zoo_page.page(value, zoo, figure=f"figures/{figure.name}")
    (docs / f"{zoo.out}.md").write_text(page)
    _say(f"{docs / zoo.out}.md")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)  # a log is read while it grows


def _value(
    args: argparse.Namespace, zoo: Zoo, found: dict[str, Any], left_out: dict[str, str]
) -> dict[str, Any]:
    runs = [run for one in found.values() for run in one.get("runs", [])]
    said = environment()
    about = {k: said[k] for k in ("python", "versions", "cpus")}
    device = jax.devices()[0]
    return {
        "command": args.command,
        "convention": CONVENTION,
        "zoo": dataclasses.asdict(zoo),
        "left_out": left_out,
        "commits": sorted({run["commit"] for run in runs if run.get("commit")}),
        "modified": any(run.get("modified") for run in runs),
        "ends": dict(Counter(run["status"] for run in runs)),
        "machine": {**about, "processor": _processor(), "device": device.device_kind},
        "archs": found,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _zoo(args: argparse.Namespace) -> Zoo:
    names = args.archs.split(",") if args.archs else archs.names()
    for name in names:
        archs.build(name)  # refuses a name that is none
    base: dict[str, Any] = dict(TINY if args.tiny else FULL)
    if args.out is not None:
        base["out"] = args.out
    if args.budgets is not None:
        base["budgets"] = tuple(float(b) for b in args.budgets.split(",") if b)
    if args.widths is not None:
        base["widths"] = tuple(int(w) for w in args.widths.split(","))
    if args.seeds is not None:
        base["seeds"] = tuple(range(args.seeds))
    steps = args.task_steps if args.task_steps is not None else 100 if args.tiny else 1000
    lrs = tuple(float(x) for x in args.task_lrs.split(","))
    chosen = tasks(steps, lrs, pairs=args.pairs) if steps else {}
    if args.tasks is not None:
        unknown = [name for name in args.tasks.split(",") if name and name not in chosen]
        if unknown:
            raise InputError("--tasks", unknown[0], f"choose of {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in args.tasks.split(",") if name}
    if args.task_archs is not None:
        base["task_archs"] = tuple(args.task_archs.split(","))
        for name in base["task_archs"]:
            if name not in names:
                raise InputError("--task-archs", name, f"choose of {', '.join(names)}")
    return Zoo(archs=tuple(names), tasks=chosen, **base)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", metavar="A,B", help="(default: all of `ladder show --list`)")
    parser.add_argument("--budgets", metavar="C,C", help="FLOPs; '' leaves text out")
    parser.add_argument("--widths", metavar="D,D", help="trained at every budget")
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: 3)")
    parser.add_argument("--tasks", metavar="A,B", help="of recall, parity, s3; '' leaves them out")
    parser.add_argument("--task-archs", metavar="A,B", help="(default: all that are trained)")
    parser.add_argument("--task-steps", type=int, metavar="N", help="(default: 1000)")
    parser.add_argument("--task-lrs", default="0.004", metavar="A,B", help="the best counts")
    parser.add_argument("--pairs", type=int, default=4, metavar="N", help="of recall (default: 4)")
    parser.add_argument("--tiny", action="store_true", help="to see that it works; writes zoo_tiny")
    parser.add_argument("--out", metavar="NAME", help="of the page, its JSON and its figure")
    parser.add_argument("--page", action="store_true", help="the page of what has been run so far")
    parser.add_argument("--estimate", action="store_true", help="measure, say how long, and stop")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--root", type=Path, default=Path("runs-zoo"), help="(default: runs-zoo)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="(default: docs)")
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    # where things lie on this machine is nobody's business
    places = ("--root", "--docs")
    shown: list[str] = []
    skip = False
    for word in given:
        if skip or word.startswith(tuple(f"{p}=" for p in places)):
            skip = False
        elif word in places:
            skip = True
        elif word != "--page":  # what made the runs is the command without it
            shown.append(word)
    args.command = shlex.join(["python", "-m", "benchmarks.zoo", *shown])
    return args


if __name__ == "__main__":
    sys.exit(main())
