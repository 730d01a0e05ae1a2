"""May two fits be compared, along what, and what should their reader know?"""

from typing import Any

import numpy as np

from analysis.artefact import FAILED, Fit
from analysis.multiplier import Curve
from analysis.predict import RATIO_SLACK
from analysis.units import BITS, BOUND, UNSTATED
from parallelism.errors import InputError

# what decides a loss, or its compute, by itself
MUST = ("loss_unit", "loss", "C", "N", "data.tokenizer", "data.sources", "data.fingerprint")
# what may be the recipe itself, or be a tag that only one side states
TELL = (*MUST, "data.seq_len", "schedule.kind")
# tags that runs state and files do not: theirs are names of columns
RUNS = {"N": ("params.",), "loss": ("loss/", "bpb/")}


def abscissa(a: Fit, b: Fit, names: tuple[str, str]) -> dict[str, str]:
    """Along what: compute where both laws are of N and D, or the one input of both."""
    laws = (a.where.law, b.where.law)
    inputs = [set(law.input_names) for law in laws]
    if inputs[0] == inputs[1] == {"N", "D"}:
        kind = str(a.conventions.get("C", ""))
        return {"name": "C", "unit": "training FLOPs", "convention": kind or "C"}
    if inputs[0] == inputs[1] and len(laws[0].inputs) == 1 and laws[0].inputs[0].scale == "log":
        one = laws[0].inputs[0]
        return {"name": one.name, "unit": one.unit, "convention": ""}
    said = " and ".join(
        f"{name}: {law.name} of {', '.join(law.input_names)}"
        for name, law in zip(names, laws, strict=True)
    )
    raise InputError(
        "laws", said, "fit both with laws of N and D, or both with one and the same input"
    )


def check(a: Fit, b: Fit, names: tuple[str, str], evaluation_sd: tuple[float, float]) -> None:
    """Raises InputError where the two fits are not of one loss in one convention, or tell no
    interval."""
    for name, fit, sd in zip(names, (a, b), evaluation_sd, strict=True):
        if fit.status == FAILED:
            raise InputError(name, "status FAILED", "fit again with more runs: it is not confirmed")
        if len(fit.samples) < 2:
            raise InputError(name, "no bootstrap draws", "fit again with --bootstrap 400")
        if not (np.isfinite(sd) and sd >= 0):
            raise InputError("evaluation_sd", sd, "write a standard deviation in units of the loss")
    outputs = [fit.where.law.output for fit in (a, b)]
    if outputs[0].name != outputs[1].name or "label" in (o.scale for o in outputs):
        raise InputError(
            "laws", f"{outputs[0].name} and {outputs[1].name}", "compare two laws of one loss"
        )
    for key in MUST:
        left, right = a.conventions.get(key), b.conventions.get(key)
        if left == right or not _stated(key, left) or not _stated(key, right):
            continue
        if key == "data.tokenizer" and all(_unit(x).startswith(BITS) for x in (a, b)):
            continue
        if key == "C" and abscissa(a, b, names)["name"] != "C":
            continue
        plain = {str(tag).removesuffix(BOUND) for tag in (left, right)}
        bound = key == "loss_unit" and len(plain) == 1
        if bound and evaluation_sd[0 if str(left).endswith(BOUND) else 1]:
            continue  # stated as the bound it is, and warned of
        also = ", or both in bits per byte" if key == "data.tokenizer" else ""
        also += ", or state the bound's error as evaluation_sd" if bound else ""
        raise InputError(
            key, f"{left} of {names[0]}, {right} of {names[1]}", f"fit both in one{also}"
        )


def _unit(fit: Fit) -> str:
    return str(fit.conventions.get("loss_unit", UNSTATED))


def _stated(key: str, tag: Any) -> bool:
    """Whether a tag says what was measured: the name of a file's column does not."""
    if tag is None or tag == UNSTATED:
        return False
    return key not in RUNS or str(tag).startswith(RUNS[key])


def overlap(a: Fit, b: Fit, axis: str, names: tuple[str, str]) -> tuple[float, float]:
    for name, fit in zip(names, (a, b), strict=True):
        if axis not in fit.ranges:
            raise InputError(name, f"no range of {axis}", "write it again with ladder fit --json")
    low, high = (f(a.ranges[axis][k], b.ranges[axis][k]) for k, f in ((0, max), (1, min)))
    if not low < high:
        shown = ", ".join(
            f"{name} {fit.ranges[axis][0]:.3g} to {fit.ranges[axis][1]:.3g}"
            for name, fit in zip(names, (a, b), strict=True)
        )
        raise InputError(axis, shown, f"train both over some common range of {axis}")
    return low, high


def same_rows(a: Fit, b: Fit) -> bool:
    return a.data_hash == b.data_hash


def warnings(
    a: Fit,
    b: Fit,
    names: tuple[str, str],
    both: tuple[Curve, Curve],
    end: float,
    evaluation_sd: tuple[float, float],
) -> list[str]:
    out = []
    for name, fit, one in zip(names, (a, b), both, strict=True):
        if fit.status != "CONVERGED":
            out.append(f"the fit of {name} is {fit.status}")
        best = one.best(fit, end)
        if best is not None:
            ratio = best[1] / best[0]
            low, high = fit.ranges["D/N"]
            if not low / RATIO_SLACK <= ratio <= high * RATIO_SLACK:
                out.append(
                    f"the best size of {name} at {end:.3g} has {ratio:.3g} tokens a parameter,"
                    f" fitted on {low:.3g} to {high:.3g}"
                )
    if same_rows(a, b):
        one = a.law == b.law and a.theta == b.theta
        what = "one fit: there is nothing to compare" if one else "fits of the same rows: laws, not"
        out.append(f"{names[0]} and {names[1]} are {what}" + ("" if one else " recipes, differ"))
    for key in TELL:
        left, right = a.conventions.get(key), b.conventions.get(key)
        if left != right and not (key == "C" and abscissa(a, b, names)["name"] != "C"):
            said = " and ".join(
                f"{'not stated' if tag is None else tag} of {name}"
                for name, tag in zip(names, (left, right), strict=True)
            )
            out.append(f"{key} is {said}: taken as comparable")
    for name, sd in zip(names, evaluation_sd, strict=True):
        if sd:
            out.append(f"the loss of {name} is a bound: its multiplier is an upper bound too")
    return out
