"""The front door: every verb of the command line, thin.

A verb's docstring is its help and its example. Rooms are imported by the verb that needs them.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder_options import BAD_INPUT, Parser
from ladder_options import table as options
from parallelism.errors import InputError

OK, BAD_ANSWER, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if argv is None:
        _quick_memory(args.verb)
    try:
        return args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one was", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # ladder table | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


# -- one model, one run ----------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """Parameters, sharding, initialisation, multipliers and FLOPs of an architecture.

    ladder show dense --set model.d_model=512
    """
    from model import archs
    from model.show import show as describe

    if args.list:
        return _out(args, archs.names(), "\n".join(archs.names()))
    if args.model is None:
        raise InputError("ladder show", "no name", "name an architecture, or write --list")
    spec = _spec(args.model, args.set)
    if args.devices:
        from parallelism.accelerators import parse
        from train.estimate import ranked

        chip, count = parse(args.devices)
        found = ranked(spec, devices=count, chip=chip)
        _out(args, found.to_json(), found.text())
        return OK if found.best else BAD_ANSWER  # refused, with the numbers, where none fits
    source_len = spec.data.source_length
    shown = describe(
        spec.model, seq_len=spec.data.seq_len, source_len=source_len, mesh=spec.execution.mesh
    )
    return _out(args, shown.to_json(), shown.text())


def train(args: argparse.Namespace) -> int:
    """Train one run to its end, from its last checkpoint if it has one.

    ladder train --arch dense --set model.d_model=64 --set budget.tokens=2e6
    """
    from sweeps.launch.single import train_here

    if (args.spec is None) == (args.arch is None):
        given = "both" if args.spec else "neither"
        raise InputError("ladder train", f"{given} of SPEC.json and --arch", "give one of the two")
    from train.estimate import AUTO, with_mesh

    given = [text for text in args.set if text.replace(" ", "") != AUTO]
    spec = _spec(args.spec or args.arch, given)
    roll = None
    if args.distributed:
        from parallelism.mesh import start_processes
        from train.environment import carries
        from train.spec import to_json

        roll = start_processes(carries(to_json(spec)), join_seconds=args.join_seconds)
    if len(given) < len(args.set):
        spec = with_mesh(spec)
    outcome = train_here(spec, root=args.root, show=not args.quiet)
    if roll is not None:
        roll.close()
    value = {
        "run_id": outcome.run_id,
        "status": outcome.status,
        "reason": outcome.reason,
        "metrics": outcome.metrics,
        "skipped": outcome.skipped,
    }
    why = f": {outcome.reason}" if outcome.reason else ""
    lines = [f"{outcome.status} {args.root / outcome.run_id}{why}"]
    for name in ("loss/train", "loss/val", "bpb/val"):
        if name in outcome.metrics:
            lines.append(f"{name} {outcome.metrics[name]:.4f}")
    _out(args, value, "\n".join(lines))
    return {"done": OK, "interrupted": INTERRUPTED}.get(outcome.status, BAD_ANSWER)


def sample(args: argparse.Namespace) -> int:
    """Text from a run's newest checkpoint, so that a person can read what it has learned; of a run
    on real numbers, the forecast of the next --tokens of each series of a file.

    ladder sample 15dcd4341cd1 --prompt "def main(" --temperature 0.8
    """
    from train.draw import Drawing
    from train.forecast import forecast, is_forecaster
    from train.sample import sample as draw

    if is_forecaster(args.of, root=args.root):
        ahead = forecast(
            args.of, args.prompt, root=args.root, tokens=args.tokens, time_column=args.time
        )
        return _out(args, ahead.to_json(), ahead.text())
    to = sys.stderr if args.json == "-" else sys.stdout
    drawing = Drawing(args.temperature, args.top_k, args.top_p, args.seed)
    found = draw(
        args.of,
        args.prompt,
        root=args.root,
        tokens=args.tokens,
        n=args.n,
        drawing=drawing,
        merge=args.merge,
        say=lambda piece: print(piece, end="", flush=True, file=to),
    )
    return _out(args, found.to_json(), found.text())


# -- sweeps ----------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> int:
    """The dry run of a sweep: what each cell is, costs and already has; writes plan.json.

    ladder plan sweep.toml
    """
    from sweeps.dry_run import dry_run
    from sweeps.load import load

    made = load(args.sweep, set=_settings(args.set))
    path = made.write(args.root)
    dry = dry_run(made, args.root, flops_per_second=args.flops_per_second)
    return _out(args, {**dry.to_json(), "plan": str(path)}, f"{dry.text()}\nplan: {path}")


def sweep(args: argparse.Namespace) -> int:
    """Train every run of a sweep that is not finished; kill it and call it again at will.

    ladder sweep sweep.toml
    """
    from sweeps.launch.local import sweep as launch
    from sweeps.load import load

    made = load(args.sweep, set=_settings(args.set))
    made.write(args.root)
    summary = launch(
        made, args.root, workers=args.workers, retries=args.retries, show=not args.quiet
    )
    _out(args, summary.to_json(), summary.text())
    return summary.exit_status


def status(args: argparse.Namespace) -> int:
    """Every planned and found run: where it is, and what a reader must know of it.

    ladder status --root runs
    """
    from sweeps.doctor import status as examine
    from sweeps.load import load

    found = examine(args.root, load(args.sweep) if args.sweep else None)
    return _out(args, found.to_json(), found.text())


def demo(args: argparse.Namespace) -> int:
    """The whole path, small: sweep, fit, predict the held-out rung, train it, size a big run.

    ladder demo --size tiny
    """
    from sweeps.demo import demo as run

    say = _to_stderr if args.json == "-" else print
    found = run(arch=args.arch, size_name=args.size, root=args.root, workers=args.workers, say=say)
    if found is None:
        print("interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
        return INTERRUPTED
    return _out(args, found.to_json(), found.text())


# -- laws ------------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> int:
    """One row a run: its settings by dotted path, status, losses, costs.

    ladder table --root runs
    """
    from analysis.tables import table as tabulate

    rows = tabulate(args.root)
    columns = args.columns.split(",") if args.columns else None
    return _out(args, rows.to_json(), rows.text(columns))


def laws(args: argparse.Namespace) -> int:
    """Every law with its equation; one of them in full: inputs, source, domain, published fits.

    ladder laws parscale
    """
    from analysis.catalogue import find

    found = find(args.pattern)
    return _out(args, found.to_json(), found.text())


def fit(args: argparse.Namespace) -> int:
    """Fit a law to a runs folder, or to a CSV, JSONL or Parquet file of measurements.

    ladder fit runs --law chinchilla --json fit.json --figure fit.svg
    """
    observed = _observations(args, law=args.law)
    found, said = _fitted(args, observed)
    text = "\n\n".join([*said, found.text()])
    if args.figure is not None:
        from analysis.fit_figure import fit_figure, save

        text += f"\nfigure: {save(fit_figure(found, observed), args.figure)}"
    _out(args, found.to_json(), text)
    return BAD_ANSWER if found.status == "FAILED" else OK


def predict(args: argparse.Namespace) -> int:
    """The loss a fitted law expects at a size and token count, with its interval by source.

    ladder predict fit.json --at N=1e9,D=2e10
    """
    from analysis.artefact import read_fit
    from analysis.predict import parse_at
    from analysis.predict import predict as expect

    found = expect(read_fit(args.fit), parse_at(args.at), level=args.level)
    return _out(args, found.to_json(), found.text())


def backtest(args: argparse.Namespace) -> int:
    """How would the law have done? Fit below each budget, predict the next, compare.

    ladder backtest runs --law chinchilla,chinchilla_gamma,farseer
    """
    found, said = _fitted(args, _observations(args, law=args.law))
    lines = found.backtest.get("lines", [])
    return _out(args, found.backtest, "\n".join([*said, *lines]))


def compare(args: argparse.Namespace) -> int:
    """Two recipes or architectures: compute multiplier, and whether the order holds at the target.

    ladder compare a.json b.json --flops 1e22
    """
    from analysis.artefact import read_fit
    from analysis.compare import compare as both

    fits, rows = [], []
    for source, where in ((args.a, args.where_a), (args.b, args.where_b)):
        if source.endswith(".json") and where is None:
            fits.append(read_fit(source))
            continue
        args.data, args.where = source, where
        rows.append(_observations(args, law=args.law))
        fits.append(_fitted(args, rows[-1])[0])
    observed = (rows[0], rows[1]) if len(rows) == 2 else None
    names = (args.names or "A,B").split(",")
    if len(names) != 2 or not all(names):
        raise InputError("--names", args.names, "write two names, as in dense,moe")
    found = both(
        fits[0], fits[1], flops=args.flops, names=(names[0], names[1]), observations=observed
    )
    text = found.text()
    if args.figure is not None:
        from analysis.compare_figure import comparison
        from analysis.fit_figure import save

        text += f"\nfigure: {save(comparison(found, observed), args.figure)}"
    _out(args, found.to_json(), text)
    return OK if found.decided else BAD_ANSWER


def next_(args: argparse.Namespace) -> int:
    """Which runs to train next for a stated cost, and what each of them buys at the target.

    ladder next fit.json --cost 6e20 --flops 1e22
    """
    from analysis.artefact import read_fit
    from analysis.design import next_runs
    from analysis.devices import parse
    from sweeps.next_runs import base_of, plan_of, realisable

    read = read_fit(args.fit)
    base = base_of(read, root=args.root, arch=args.arch) if args.plan else None
    rows = None
    if args.data is not None:
        rows = _observations(args, law=read.law)
    found = next_runs(
        read,
        cost=args.cost,
        target=args.flops,
        observations=rows,
        tolerance=args.tolerance,
        ratio=_span("--ratio", args.ratio) if args.ratio else None,
        replicates=args.replicates,
        devices=parse(args.devices, mfu=args.mfu) if args.devices else None,
        decay_share=args.decay_share,
        sizes=realisable(read, base, arch=args.arch) if base else None,
    )
    text = found.text()
    if base:
        path = plan_of(found, read, base, arch=args.arch).write(args.root)
        text += f"\nplan: {path}; train it with: ladder sweep {path}"
    if args.figure is not None:
        from analysis.design_figure import design_figure
        from analysis.fit_figure import save

        text += f"\nfigure: {save(design_figure(found, rows, fit=read), args.figure)}"
    return _out(args, found.to_json(), text)


def isoflop(args: argparse.Namespace) -> int:
    """Each budget's valley and its optimum, or the reason there is none; exponents of N*(C), D*(C).

    ladder isoflop runs
    """
    from analysis.isoflop import isoflop as valleys

    observed = _observations(args, law="chinchilla", also=("C",))
    found = valleys(observed, flops=args.flops, residual=args.residual)
    return _out(args, found.to_json(), found.text())


def size(args: argparse.Namespace) -> int:
    """N, D, loss for a budget, each with its interval; with --out, a run that ladder train takes.

    ladder size fit.json --flops 1e24 --devices h100:1024 --out production.json
    """
    from analysis.artefact import read_fit
    from analysis.devices import parse
    from analysis.serve_options import parse_answers, parse_serve
    from sweeps.sized import sized

    for flag in ("mfu", "dollars_per_hour"):
        if (value := getattr(args, flag)) is not None and not args.devices:
            name = f"--{flag.replace('_', '-')}"
            raise InputError(name, value, "write --devices too, as in --devices h100:1024")
    if args.out is not None and not args.out.parent.is_dir():
        raise InputError("--out", str(args.out), f"no folder {args.out.parent}; make it first")
    read = read_fit(args.fit)
    serve = parse_serve(args.serve) if args.serve else None
    answers = parse_answers(args.pass_rates, serve) if args.pass_rates else None
    found = sized(
        read,
        flops=args.flops,
        inference_tokens=args.inference_tokens,
        inference=None if answers else serve,
        answers=answers,
        devices=parse(args.devices, mfu=args.mfu, dollars_per_hour=args.dollars_per_hour)
        if args.devices
        else None,
        unique_tokens=args.unique_tokens,
        fixed=_fixed(args.at),
        surface=_surface(args.surface) if args.surface else None,
        root=args.root,
        arch=args.arch,
        transfer=args.transfer,
        settings=args.set,
        out=args.out,
        anyway=args.anyway,
    )
    text = found.text()
    if args.figure is not None:
        from analysis.fit_figure import save
        from analysis.plan_figure import plan_figure

        text += f"\nfigure: {save(plan_figure(read, found.sizing), args.figure)}"
    return _out(args, found.to_json(), text)


def report(args: argparse.Namespace) -> int:
    """One self-contained HTML page: valleys, frontier, residuals, runs, exclusions, provenance.

    ladder report runs --out report.html
    """
    from analysis.isoflop import isoflop as valleys
    from analysis.report import write_report

    observed = _observations(args, law=args.law)
    found, _ = _fitted(args, observed)
    has_valleys = {"N", "D", "C"} <= set(observed.columns) and found.where.law.output.name == "loss"
    path = write_report(
        args.out,
        fit=found,
        observations=observed,
        isoflop=valleys(observed, fit=found) if has_valleys else None,
    )
    return _out(args, {"report": str(path)}, f"report: {path}")


# -- checks and tools ------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Does a promise hold? `transfer`: do activations change alike at every width?

    ladder check transfer --arch dense
    """
    from train.coordinates import coordinate_check

    found = coordinate_check(
        _spec(args.arch, ["data.seq_len=64", *args.set]),
        cache=args.root / ".cache" / "data",
        widths=_whole_numbers("--widths", args.widths),
        lr=args.lr,
        rows=args.rows,
    )
    _out(args, found.to_json(), found.text())
    return OK if found.flat else BAD_ANSWER


def bench(args: argparse.Namespace) -> int:
    """Tokens per second, model FLOP/s, share of this machine's matrix-product peak, loop overhead.

    ladder bench --arch dense --set model.d_model=128
    """
    from train.bench import bench as measure

    spec = _spec(args.arch, args.set)
    found = measure(spec, root=args.root, steps=args.steps)
    return _out(args, found.to_json(), found.text())


def tokenizer(args: argparse.Namespace) -> int:
    """Train a byte-level BPE on a corpus; data.tokenizer takes the file.

    ladder tokenizer train --source stdlib --vocab 4096 --out tokenizer.json
    """
    from train.data.tokenizers import train_bpe

    made = train_bpe(_source(args.source, args.column), vocab=args.vocab, out=args.out)
    value = {"path": str(args.out), "vocab": made.n_vocab}
    hint = f"--set data.tokenizer={args.out} --set model.vocab={made.n_vocab}"
    return _out(args, value, f"{made.n_vocab} tokens: {args.out}\nuse it with {hint}")


# -- the command line ------------------------------------------------------------------------------


def parser() -> Parser:
    return options(
        (
            show,
            train,
            sample,
            plan,
            sweep,
            status,
            demo,
            table,
            laws,
            fit,
            predict,
            backtest,
            compare,
            next_,
            isoflop,
            size,
            report,
            check,
            bench,
            tokenizer,
        )
    )


def _whole_numbers(field: str, text: str) -> list[int]:
    parts = [p.strip() for p in text.split(",")]
    if len(set(parts)) < 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise InputError(field, text, "write at least two different widths, as in 64,128,256")
    return [int(p) for p in parts]


def _spec(source: str, settings: Sequence[str]) -> Any:
    """A RunSpec from a name or a JSON file, with `--set` applied."""
    from pydantic import ValidationError

    from model import archs
    from model.spec import ModelSpec
    from train.paths import override
    from train.record import read_json
    from train.spec import RunSpec, from_dict
    from train.spec_error import input_error

    if source.endswith(".json") or Path(source).is_file():
        path = Path(source)
        if not path.is_file():
            raise InputError("SPEC.json", source, "no such file; `ladder show --list` has names")
        tree = read_json(path)
        if not isinstance(tree, dict):
            raise InputError(source, "not an object", "give the JSON of a RunSpec")
        return override(from_dict(tree, source=source), settings)
    try:
        model = archs.build(source)
    except ValidationError as error:  # in a function of the user's own
        raise input_error(error, source=source, root=ModelSpec) from None
    return override(_rebuilt(RunSpec(model=model), settings), settings)


def _rebuilt(spec: Any, settings: Sequence[str]) -> Any:
    """A named family at the width that `--set model.d_model` asks for keeps its own shape rule."""
    from dataclasses import replace

    from model import archs
    from model.spec import WIDEST
    from train.paths import parse

    changes = dict(parse(text) for text in settings)
    width = changes.get("model.d_model")
    if not isinstance(width, int | float) or not 1 <= width <= WIDEST or width != int(width):
        return spec  # `override` says what is wrong with that width
    try:
        return replace(spec, model=archs.build(spec.model.arch, int(width)))
    except InputError:
        raise
    except ValueError:
        return spec  # `override` says what is wrong with that width


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    from train.paths import parse

    return dict(parse(text) for text in texts)


def _observations(args: argparse.Namespace, *, law: str, also: tuple[str, ...] = ()) -> Any:
    from analysis import laws, menu, quantities
    from analysis.observations import observe, parse_map

    names = menu.DECLARED if law == "auto" else law.split(",")
    found = [laws.resolve(name) for name in names]
    extra = [getattr(quantities, name) for name in also]
    if getattr(args, "by", None):
        extra.append(quantities.Quantity(args.by, "group", "label"))
    inputs = {i.name: i for i in (*(i for one in found for i in one.inputs), *extra)}
    return observe(
        args.data,
        inputs=tuple(inputs.values()),
        output=found[0].output,
        columns=parse_map(args.map),
        where=args.where,
        exclude=args.exclude,
        convention=args.convention,
        cluster=args.cluster,
        unit=args.unit,
    )


def _fitted(args: argparse.Namespace, observed: Any) -> tuple[Any, list[str]]:
    """The fit of one law, or of the one that a menu's hold-outs choose, with the menu in words."""
    from analysis.fit import fit as solve
    from analysis.menu import DECLARED, choose

    options = {
        "huber": args.huber,
        "reduce": args.reduce,
        "residual": args.residual,
        "by": args.by,
        "share": tuple(args.share.split(",")) if args.share else (),
        "multiplier": args.multiplier,
        "prior": args.prior,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        "level": args.level,
    }
    if args.law != "auto" and "," not in args.law:
        return solve(observed, law=args.law, **options), []
    menu = choose(observed, laws=DECLARED if args.law == "auto" else args.law.split(","), **options)
    return menu.fit, [menu.text()]


def _fixed(text: str | None) -> dict[str, Any] | None:
    from analysis.predict import parse_at

    return dict(parse_at(text)) if text else None


def _surface(source: str) -> Any:
    """The response surface of a sweep over learning rate and batch."""
    from analysis import quantities as q
    from analysis.hyper import fit_surface, runs_of
    from analysis.observations import observe

    runs = Path(source).is_dir()
    columns = {"lr": "optim.lr", "B": "budget.batch_tokens"} if runs else None
    return fit_surface(runs_of(observe(source, inputs=(q.N, q.D, q.LR, q.B), columns=columns)))


def _span(field: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low < high < math.inf:
        raise InputError(field, text, "write two rising numbers, as in 3,400")
    return low, high


def _source(text: str, column: str) -> Any:
    from train.spec import SourceSpec

    if text == "stdlib":
        return SourceSpec()
    suffix = Path(text.removesuffix(".gz")).suffix
    if suffix == ".jsonl":
        return SourceSpec(kind="jsonl", path=text, column=column)
    if suffix == ".parquet":
        return SourceSpec(kind="parquet", path=text, column=column)
    return SourceSpec(kind="text", path=text, column=column)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _out(args: argparse.Namespace, value: Any, text: str) -> int:
    """The answer: JSON where asked, words for people (on stderr beside JSON on stdout)."""
    if args.json is None:
        print(text)
    elif args.json == "-":
        print(text, file=sys.stderr)
        print(json.dumps(_finite(value), indent=2, allow_nan=False))
    else:
        from train.record import write_json

        path = Path(args.json)
        if not path.parent.is_dir():
            raise InputError("--json", args.json, f"no folder {path.parent}; make it first")
        write_json(path, _finite(value))
        print(text)
    return OK


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: such a number is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _quick_memory(verb: str) -> None:
    """Training on CPU takes 20 to 30 % less time when malloc keeps its pages; read at start-up."""
    from sweeps.launch.machine import ALLOCATOR

    if (
        verb not in ("train", "bench")
        or sys.platform != "linux"
        or set(ALLOCATOR) & set(os.environ)
    ):
        return
    command = [sys.executable, "-m", "ladder", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


if __name__ == "__main__":
    sys.exit(main())
