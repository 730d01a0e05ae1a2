"""What is the answer of `ladder size`? The fit's N and D, and the family's run that realises them.

The base of the run is a run that the law was fitted to, read from the runs folder; a law of
somebody else's measurements takes a named family with its defaults.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.artefact import Fit
from analysis.devices import Devices
from analysis.hyper import Surface
from analysis.inference import InferenceCost
from analysis.knobs import NAMES, Knob, of_rule, of_surface
from analysis.optimum import Demand
from analysis.planner import size
from analysis.predict import Prediction, predict
from analysis.serve_options import Answers
from analysis.serving import ServingPlan, serving_plan
from analysis.sizing import Sizing
from model import archs
from model.count import CONVENTIONS
from parallelism.errors import InputError
from sweeps.laid_out import on_devices
from sweeps.production import Production, production
from sweeps.transfer import BATCH, DECAY, LR, rule_of, whole_batch
from train import paths
from train.record import RunDir
from train.spec import RunSpec, from_dict

COMPUTED = ("model.d_model", "model.n_layers", "budget.tokens")  # from the law and the budget
BEST_OF_BOTH = "highest coverage of training and answers together"
MANY_STEPS = 1_000_000  # a batch so small for its run that it was hardly meant


@dataclasses.dataclass(frozen=True)
class Sized:
    """Numbers from the law, the run that realises them, and what the law expects of exactly it."""

    sizing: Sizing
    production: Production
    prediction: Prediction
    knobs: dict[str, Knob]  # lr, batch_tokens, weight_decay
    answers: ServingPlan | None  # where training and answers share the budget
    out: Path | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        run = self.production.to_json()
        return {
            **self.sizing.to_json(),
            "answers": self.answers.to_json() if self.answers else None,
            **{key: run[key] for key in ("lr", "batch_tokens", "weight_decay", "steps")},
            "knobs": {name: knob.to_json() for name, knob in self.knobs.items()},
            "production": run,
            "prediction": self.prediction.to_json(),
            "out": str(self.out) if self.out else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        lines = [self.answers.text(), ""] if self.answers else []
        lines += [self.sizing.text(), "", self.production.text()]
        lines += [knob.text(name) for name, knob in self.knobs.items()]
        lines.append(self.prediction.text())
        lines += [f"note: {note}" for note in self.notes]
        if self.out:
            lines.append(f"launch it with: ladder train {self.out}")
        return "\n".join(lines)


def sized(
    fit: Fit,
    *,
    flops: float,
    inference_tokens: float | None = None,
    inference: InferenceCost | Demand | None = None,
    answers: Answers | None = None,
    devices: Devices | None = None,
    unique_tokens: float | None = None,
    fixed: Mapping[str, float | str] | None = None,
    surface: Surface | None = None,
    root: Path = Path("runs"),
    arch: str | None = None,
    transfer: str = "fixed",
    settings: Sequence[str] = (),
    out: Path | None = None,
    anyway: bool = False,
) -> Sized:
    """Size a budget and, with `out`, write the run; raises InputError on what cannot be met.

    The run realises `sizing.chosen`: the size of least expected regret or, with inference demand,
    that of least training and inference; with `answers`, `flops` pays for training and answering
    together and the run is that of the highest coverage. `surface`: of the sweep's learning rates
    and batches; it sets both instead of `transfer`.
    """
    _check_settings(settings)
    if surface is not None and transfer != "fixed":
        raise InputError("--transfer", transfer, "leave it out: --surface gives lr and batch")
    family = _family(fit, arch)
    plan = None
    if answers is not None:
        plan = serving_plan(
            fit,
            answers.link,
            answers.cost,
            flops=flops,
            most=answers.most,
            fixed=fixed,
            unique_tokens=unique_tokens,
        )
        flops = plan.train_share * flops
    sizing = size(
        fit,
        flops,
        inference_tokens=inference_tokens,
        inference=inference,
        devices=devices,
        unique_tokens=unique_tokens,
        fixed=fixed,
        decided=(plan.N["value"], BEST_OF_BOTH) if plan else None,
        anyway=anyway,
    )
    if not sizing.known and not anyway:
        raise InputError(
            "fit.json",
            f"an interval of N from {sizing.N['lo']:.3g} to {sizing.N['hi']:.3g}",
            _wanted(fit) + ", or write --anyway",
        )
    base, origin = _base(fit, root, family)
    convention = fit.conventions["C"]
    if convention not in CONVENTIONS:
        raise InputError(
            "fit.json",
            f"compute in column {convention}",
            f"fit again without C in --map (C is then 6 N D), or by {', '.join(CONVENTIONS)}",
        )
    chosen = sizing.chosen["N"]
    kind = "total"
    if fit.conventions.get("N") == "params.non_embedding":
        kind = "non_embedding"
    # with inference demand the tokens follow from the loss to be reached, not from the budget
    spend = flops if sizing.inference is None else sizing.inference["train_flops"]

    def realised(settings: Sequence[str]) -> Production:
        return production(
            paths.override(base, settings),
            n=chosen,
            flops=spend,
            convention=convention,
            arch=family or base.model.arch,
            transfer=transfer,
            kind=kind,
            devices=devices.count if devices else None,
        )

    run = realised(settings)
    if surface is not None:
        run = realised([*_from_surface(surface, run, settings, kind), *settings])
    knobs = _knobs(run, surface, transfer, settings, kind)
    expected = predict(fit, {"N": run.params[kind], "D": run.tokens, **sizing.fixed})
    notes = [origin]
    if sizing.inference is not None:
        notes.append(
            f"training costs {spend / flops:.3g} times --flops: the smaller model needs more tokens"
        )
    if run.spec.steps > MANY_STEPS:
        notes.append(
            f"{run.spec.steps:,} steps of {run.spec.budget.batch_tokens:,} tokens: the batch is "
            f"the sweep's; --transfer olmo_ladder or --set budget.batch_tokens=... chooses another"
        )
    if out is not None:
        laid = None
        if devices is not None:
            run, laid, note = on_devices(run, devices)
            notes.append(note)
        run.write(out, prediction=expected.to_json(), estimate=laid)
    return Sized(sizing, run, expected, knobs, plan, out, tuple(notes))


def _wanted(fit: Fit) -> str:
    """What would fix the size, in the fit's own words."""
    if fit.missing:
        return "; ".join(m["instead"] for m in fit.missing)
    return "add runs of other sizes and lengths"


def _from_surface(
    surface: Surface, run: Production, settings: Sequence[str], kind: str
) -> list[str]:
    """The surface's learning rate and batch as settings, those given by hand left alone. The
    surface's N is that of the law: `kind`."""
    ours = {paths.parse(text)[0] for text in settings}
    want = of_surface(surface, N=run.params[kind], D=run.tokens)
    batch = whole_batch(want["batch_tokens"].value, base=run.spec)
    both = {LR: want["lr"].value, BATCH: batch}
    return [f"{path}={value}" for path, value in both.items() if path not in ours]


def _knobs(
    run: Production, surface: Surface | None, transfer: str, settings: Sequence[str], kind: str
) -> dict[str, Knob]:
    """What the run has, with the interval of where its optimum is thought to be."""
    spec = run.spec
    ours = {paths.parse(text)[0] for text in settings}
    values: dict[str, float] = {
        "lr": spec.optim.lr,
        "batch_tokens": spec.budget.batch_tokens,
        "weight_decay": spec.optim.weight_decay,
    }
    where: dict[str, str] = dict(zip(NAMES, (LR, BATCH, DECAY), strict=True))
    N, D = run.params["non_embedding"], run.tokens
    out = {}
    for name, value in values.items():
        rule = transfer
        if where[name] not in rule_of(transfer)[0].sets:
            rule = "set" if where[name] in ours else "fixed"
        out[name] = of_rule(rule, name=name, value=value, N=N, D=D)
    if surface is not None:
        want = of_surface(surface, N=run.params[kind], D=D)
        out |= {n: dataclasses.replace(knob, value=values[n]) for n, knob in want.items()}
    return out


def _check_settings(settings: Sequence[str]) -> None:
    for text in settings:
        path, value = paths.parse(text)
        if any(known == path or known.startswith(f"{path}.") for known in COMPUTED):
            raise InputError(
                f"--set {path}", value, "ladder size computes it; leave it out, or change --flops"
            )


def _family(fit: Fit, arch: str | None) -> str | None:
    """The family to size: the law's own, where it is one with a name."""
    fitted = fit.conventions.get("model.arch")
    if fitted not in archs.names():
        return arch
    if arch not in (None, fitted):
        raise InputError("--arch", arch, f"the law is of {fitted}; fit runs of {arch} first")
    return fitted


def _base(fit: Fit, root: Path, arch: str | None) -> tuple[RunSpec, str]:
    for folder in (Path(fit.source), root):
        for run_id in fit.run_ids[:1]:
            directory = RunDir(folder / run_id)
            if (directory.path / "spec.json").exists():
                spec = from_dict(directory.read().spec, source=str(directory.path))
                return spec, f"settings that are not sizes are those of run {run_id}"
    name = arch or "dense"
    spec = RunSpec(model=archs.build(name))
    return spec, f"the law is not of runs here: the run is {name} with its default settings"
