"""What do `--serve` and `--pass-rates` say? Words of the command line as a cost of serving and as
the pass rates that a loss buys."""

from dataclasses import dataclass

import numpy as np

from analysis.devices import ASSUMED_MFU
from analysis.inference import INTENSITY, InferenceCost, cache_of_family, priced
from analysis.optimum import Demand
from analysis.serving import PassRates
from parallelism.errors import InputError, nearest

MOST = 1e5  # answers to a request that are looked at

# what each word may be left out for; None must be written
TOKENS: dict[str, float | None] = {
    "prefill": 0.0,
    "decode": None,
    "prefill_mfu": None,
    "decode_mfu": None,
    "train_mfu": ASSUMED_MFU,
    "price_ratio": 1.0,
}
REQUESTS: dict[str, float | None] = {
    "requests": None,
    "prompt": None,
    "output": None,
    "answers": 1.0,
    "aspect": None,
    "grouping": 1.0,
    "intensity": INTENSITY,
    "count_prompt": 0.0,
}
PASS_RATES: dict[str, float | None] = {
    "intercept": None,
    "slope": None,
    "size": None,
    "most": MOST,
}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A plan of training and answers together: what a loss buys, what answers cost, how many at
    most."""

    link: PassRates
    cost: InferenceCost
    most: float = MOST


def parse_serve(text: str) -> Demand | InferenceCost:
    """A cost of serving; raises InputError.

    `prefill=3e12,decode=1e12,prefill_mfu=0.5,decode_mfu=0.1`: tokens over the model's life at the
    utilisation of each (`train_mfu`, `price_ratio`: of the training they are weighed against).
    `requests=1e9,prompt=1000,output=500,aspect=64`: requests with their key-value cache, in a
    family of d_model = aspect n_layers (`answers`, `grouping`, `intensity`, `count_prompt=1`).
    """
    if "requests" not in _words("--serve", text):
        said = _numbers("--serve", text, TOKENS)
        return priced(
            prefill_tokens=said["prefill"],
            decode_tokens=said["decode"],
            **{k: said[k] for k in ("train_mfu", "prefill_mfu", "decode_mfu", "price_ratio")},
        )
    said = _numbers("--serve", text, REQUESTS)
    return InferenceCost(
        requests=said["requests"],
        prompt_tokens=said["prompt"],
        output_tokens=said["output"],
        trials=said["answers"],
        cache=cache_of_family(aspect=said["aspect"], grouping=said["grouping"]),
        intensity=said["intensity"],
        prefill=bool(said["count_prompt"]),
    )


def parse_answers(pass_rates: str, cost: Demand | InferenceCost | None) -> Answers:
    """`intercept=6,slope=-3,size=2`: the logit of the mean pass rate is intercept + slope loss and
    the rates' Beta distribution has alpha + beta = size; `most` answers. Raises InputError."""
    said = _numbers("--pass-rates", pass_rates, PASS_RATES)
    if said["size"] <= 0:
        raise InputError("--pass-rates: size", said["size"], "write alpha + beta, above 0")
    if not isinstance(cost, InferenceCost):
        raise InputError(
            "--pass-rates",
            pass_rates,
            "say what answers cost: --serve requests=1e9,prompt=1000,output=500,aspect=64",
        )
    link = PassRates(said["intercept"], said["slope"], said["size"])
    return Answers(link=link, cost=cost, most=said["most"])


def _words(field: str, text: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not name:
            raise InputError(field, part, "write name=number, several with commas")
        if name in out:
            raise InputError(field, text, f"write {name} once")
        out[name] = value
    return out


def _numbers(field: str, text: str, known: dict[str, float | None]) -> dict[str, float]:
    out = {name: value for name, value in known.items() if value is not None}
    for name, value in _words(field, text).items():
        if name not in known:
            raise InputError(f"{field}: {name}", value, nearest(name, known))
        try:
            out[name] = float(value)
        except ValueError:
            out[name] = np.nan
        if not np.isfinite(out[name]):
            raise InputError(f"{field}: {name}", value, "write a number such as 1e9")
    for name in known:
        if name not in out:
            raise InputError(f"{field}: {name}", "missing", f"write {name}= among {text}")
    return out
