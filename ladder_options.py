"""What may be written after each verb? The table of the command line's options.

`ladder.py` says what a verb does; here is what it takes, one line an option.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

BAD_INPUT = 2


class Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def table(verbs: Sequence[Callable[[argparse.Namespace], int]]) -> Parser:
    """The parser of these verbs; their docstrings are their help and their example."""
    top = Parser(prog="ladder", description="Scaling sweeps from a grid to a sized production run.")
    subs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    runs = {run.__name__.rstrip("_"): run for run in verbs}

    def verb(name: str, *, root: bool = True) -> Parser:
        what, _, rest = (runs[name].__doc__ or "").partition("\n\n")
        out = subs.add_parser(
            name,
            help=what.split(";")[0].split(". ")[0].rstrip("."),
            description=" ".join(what.split()),
            epilog="example:\n  " + rest.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        out.set_defaults(run=runs[name])
        out.add_argument("--json", metavar="PATH", help="write the answer as JSON (- for stdout)")
        if root:
            out.add_argument(
                "--root",
                type=Path,
                default=Path("runs"),
                metavar="DIR",
                help="runs (default: runs)",
            )
        return out

    one = verb("demo")
    one.add_argument("--arch", default="dense", metavar="NAME", help="family (default: dense)")
    sizes = "small, tiny, or smoke: only whether the path runs"
    one.add_argument("--size", default="small", metavar="SIZE", help=sizes)
    one.add_argument("--workers", type=_whole, metavar="N", help="processes (default: one a core)")

    one = verb("show")
    one.add_argument("model", nargs="?", metavar="NAME|SPEC.json", help="architecture or run")
    one.add_argument("--list", action="store_true", help="the names")
    one.add_argument("--devices", metavar="KIND:COUNT", help="rank their meshes, as in h100:64")
    _set(one)

    one = verb("train")
    one.add_argument("spec", nargs="?", metavar="SPEC.json", help="a RunSpec")
    one.add_argument("--arch", metavar="NAME", help="or a named architecture with defaults")
    one.add_argument("--distributed", action="store_true", help="join the other processes first")
    one.add_argument(
        "--join-seconds", type=_number, default=300, metavar="S", help="to wait for them"
    )
    one.add_argument("--quiet", action="store_true", help="no progress")
    _set(one)

    one = verb("sample")
    one.add_argument("of", metavar="RUN", help="id, unique beginning of an id, or folder of a run")
    one.add_argument(
        "--prompt", required=True, metavar="TEXT|FILE", help="what to go on from: text, or series"
    )
    one.add_argument("--time", metavar="COLUMN", help="of the file of series, one that is none")
    one.add_argument("--tokens", type=_whole, default=200, metavar="N", help="(default: 200)")
    one.add_argument(
        "--temperature", type=_number, default=0.8, metavar="X", help="0: greedy (default: 0.8)"
    )
    one.add_argument("--top-k", type=_whole, metavar="K", help="of the K likeliest tokens only")
    one.add_argument("--top-p", type=_number, metavar="P", help="of the likeliest that make up P")
    one.add_argument("--n", type=_whole, default=1, metavar="N", help="texts (default: 1)")
    one.add_argument("--seed", type=_whole, default=0, help="(default: 0)")
    one.add_argument("--merge", action="store_true", help="structured layers as dense matrices")

    for name in ("plan", "sweep"):
        one = verb(name)
        one.add_argument("sweep", metavar="SWEEP", help="sweep.toml, a Python file or plan.json")
        _set(one)
        if name == "plan":
            one.add_argument(
                "--flops-per-second", type=_number, metavar="X", help="speed for the time estimate"
            )
        else:
            one.add_argument("--workers", type=_whole, metavar="N", help="processes")
            one.add_argument("--retries", type=_whole, default=2, metavar="N", help="(default: 2)")
            one.add_argument("--quiet", action="store_true", help="no live table")

    one = verb("status")
    one.add_argument("sweep", nargs="?", metavar="SWEEP", help="only this sweep's runs")

    one = verb("table")
    one.add_argument("--columns", metavar="A,B", help="dotted paths to show")

    one = verb("laws", root=False)
    one.add_argument("pattern", nargs="?", metavar="NAME|WORD", help="one law, or a word to find")

    for name in ("fit", "backtest", "isoflop", "report"):
        one = verb(name, root=False)
        one.add_argument("data", metavar="DATA", help="a runs folder, or CSV, JSONL, Parquet")
        one.add_argument("--where", metavar="EXPR", help="rows to use, as in 'model.d_model < 64'")
        _columns(one)
        if name == "isoflop":
            one.add_argument("--flops", type=_number, metavar="C", help="a budget to extend to")
            one.add_argument(
                "--residual",
                choices=("log", "linear"),
                default="log",
                help="parabolas through log losses, or losses (default: log)",
            )
        else:
            _fitting(one)
        if name == "fit":
            one.add_argument(
                "--figure",
                metavar="PATH",
                help="data, law, residuals, hold-outs (.svg, .pdf, .png)",
            )
        if name == "report":
            one.add_argument("--out", type=Path, default=Path("report.html"), metavar="PATH")

    one = verb("compare", root=False)
    for side in "ab":
        one.add_argument(side, metavar=side.upper(), help="fit.json, or DATA to fit")
    for side in "ab":
        one.add_argument(
            f"--where-{side}", metavar="EXPR", help=f"rows of {side.upper()}, where it is DATA"
        )
    one.add_argument("--flops", type=_number, metavar="C", help="the target")
    one.add_argument("--names", metavar="A,B", help="what to call them")
    one.add_argument("--figure", metavar="PATH", help="frontiers, multiplier and crossing")
    _columns(one)
    _fitting(one)

    one = verb("next")
    one.add_argument("fit", metavar="fit.json")
    one.add_argument(
        "--cost", type=_number, required=True, metavar="X", help="FLOPs, or hours of --devices"
    )
    one.add_argument("--flops", type=_number, required=True, metavar="C", help="the target")
    one.add_argument("--data", metavar="DATA", help="the fitted rows, where fit.json lacks them")
    one.add_argument("--where", metavar="EXPR", help="those of DATA that were fitted")
    one.add_argument("--tolerance", type=_number, help="stop at this half interval, as in 0.005")
    one.add_argument("--ratio", metavar="LO,HI", help="tokens a parameter (default: 3,400)")
    one.add_argument("--replicates", type=_whole, default=2, metavar="N", help="(default: 2)")
    one.add_argument("--devices", metavar="KIND:COUNT", help="count the cost in their hours")
    one.add_argument("--mfu", type=_number, help="fraction of peak (default: assumed, and said)")
    one.add_argument("--plan", action="store_true", help="write the cells as a plan of a sweep")
    one.add_argument("--figure", metavar="PATH", help="where the runs stand, and what each buys")
    one.add_argument("--arch", metavar="NAME", help="family (default: that of the fitted runs)")
    one.add_argument(
        "--decay-share", type=_number, help="cost of a further length under wsd, as in 0.1"
    )
    _columns(one)

    one = verb("predict", root=False)
    one.add_argument("fit", metavar="fit.json")
    one.add_argument("--at", required=True, metavar="N=1e9,D=2e10")
    one.add_argument("--level", type=_number, help="of the interval (default: the fit's)")

    one = verb("size")
    one.add_argument("fit", metavar="fit.json")
    one.add_argument("--flops", type=_number, required=True, metavar="C", help="the budget")
    one.add_argument("--inference-tokens", type=_number, metavar="T", help="served over its life")
    one.add_argument(
        "--serve",
        metavar="K=X,...",
        help="prefill=,decode=,prefill_mfu=,decode_mfu= or requests=,prompt=,output=,aspect=",
    )
    one.add_argument(
        "--pass-rates",
        metavar="K=X,...",
        help="intercept=,slope=,size=: train and answer (--serve) within --flops",
    )
    one.add_argument("--devices", metavar="KIND:COUNT", help="as in h100:1024")
    one.add_argument("--mfu", type=_number, help="fraction of peak (default: assumed, and said)")
    one.add_argument("--dollars-per-hour", type=_number, metavar="X", help="of one device")
    one.add_argument("--unique-tokens", type=_number, metavar="U", help="all the data there are")
    one.add_argument("--at", metavar="P=4", help="the law's inputs besides N and D")
    one.add_argument("--surface", metavar="DATA", help="runs over lr and batch, to size both from")
    one.add_argument("--figure", metavar="PATH", help="loss along the budget, flat region, regret")
    one.add_argument("--anyway", action="store_true", help="though the data reject the law's form")
    one.add_argument("--arch", metavar="NAME", help="family (default: that of the fitted runs)")
    one.add_argument("--transfer", default="fixed", metavar="RULE", help="for lr, batch, decay")
    one.add_argument("--out", type=Path, metavar="production.json", help="write the run")
    _set(one)

    one = verb("check")
    one.add_argument("what", choices=("transfer",))
    one.add_argument("--arch", default="dense", metavar="NAME", help="(default: dense)")
    one.add_argument("--widths", default="64,128,256,512", metavar="A,B", help="to compare")
    one.add_argument("--lr", type=_number, default=0.01, help="of the few steps")
    one.add_argument("--rows", type=_whole, default=8, metavar="N", help="of a batch (default: 8)")
    _set(one)

    one = verb("bench")
    one.add_argument("--arch", default="dense", metavar="NAME", help="(default: dense)")
    one.add_argument("--steps", type=_whole, default=100, metavar="N", help="(default: 100)")
    _set(one)

    one = verb("tokenizer", root=False)
    one.add_argument("what", choices=("train",))
    one.add_argument("--source", default="stdlib", metavar="stdlib|PATH")
    one.add_argument("--column", default="text", help="of JSONL and Parquet")
    one.add_argument("--vocab", type=_whole, default=4096)
    one.add_argument("--out", type=Path, default=Path("tokenizer.json"), metavar="PATH")
    return top


def _columns(one: Parser) -> None:
    """How a file's columns are read, for every verb that takes measurements."""
    one.add_argument("--map", metavar="N=col,D=col,loss=col", help="columns; N=1e9*col scales one")
    one.add_argument("--exclude", metavar="ID", action="append", default=[], help="leave out")
    one.add_argument("--convention", metavar="NAME", help="FLOPs of runs (causal_attn)")
    one.add_argument("--cluster", metavar="COLUMN", help="rows that are one run")
    one.add_argument("--unit", metavar="UNIT", help="bpb: bits per byte, by the rows' byte ratio")


def _fitting(one: Parser) -> None:
    """How a law is fitted, for every verb that fits one."""
    one.add_argument(
        "--law", default="chinchilla", metavar="NAME",
        help="a name of `ladder laws`, module:object, several with commas, or auto",
    )  # fmt: skip
    one.add_argument("--bootstrap", type=_whole, default=400, metavar="N", help="(default: 400)")
    one.add_argument("--huber", type=_number, metavar="DELTA", help="of residuals (from the noise)")
    one.add_argument("--reduce", default="sum", choices=("sum", "mean"), help="of the objective")
    one.add_argument("--residual", choices=("log", "linear"), help="(default: the law's own)")
    one.add_argument("--by", metavar="COLUMN", help="families, each with parameters of its own")
    one.add_argument("--share", metavar="A,B", help="parameters that families have in common")
    one.add_argument("--multiplier", metavar="INPUT", help="families differ by a factor of it")
    one.add_argument(
        "--prior", action="store_true", help="fit rows that leave the law open, by its weak prior"
    )
    one.add_argument("--seed", type=_whole, default=0, help="of starts and resamples")
    one.add_argument("--level", type=_number, default=0.95, help="of intervals")


def _set(one: Parser) -> None:
    one.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="a field by dotted path"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number; write one such as 1e9"
        ) from None


def _whole(text: str) -> int:
    value = _number(text)
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write one such as 400")
    return int(value)
