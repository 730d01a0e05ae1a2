"""How does a notebook ask what the verbs ask? Functions of their names, with their options as
keywords.

    import analysis.notebook as ladder

    found = ladder.fit("losses.csv", law="chinchilla", map="N=params,D=tokens,loss=val")
    found.predict(N=1e9, D=2e10)["mean"]
    found.figure("fit.pdf")

Every answer prints as in the terminal, shows as a table in a notebook, and holds the numbers of
the verb's JSON under the same keys. A mistake is an `InputError` of one line.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis import notebook_html as _html
from analysis.artefact import Fit, read_fit
from analysis.law import Law
from analysis.notebook_answer import Answer, known, saved
from analysis.notebook_data import Data, name_of, observed
from analysis.observations import Observations
from analysis.predict import parse_at
from analysis.predict import predict as _predict
from parallelism.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.menu import Menu

__all__ = ["Answer", "Fitted", "backtest", "compare", "fit", "isoflop", "laws", "read"]


@dataclass(frozen=True, repr=False)
class Fitted:
    """A fit, the rows that it was made from where they are at hand, and what the verbs ask of it.

    `value` is the artefact that `ladder fit --json` writes; `menu` the laws that `auto` compared.
    """

    value: Fit
    observations: Observations | None = None
    menu: "Menu | None" = field(default=None, repr=False)

    @property
    def params(self) -> dict[str, float]:
        return dict(self.value.params)

    @property
    def status(self) -> str:
        return self.value.status

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]

    def to_json(self) -> dict[str, Any]:
        return self.value.to_json()

    def write(self, path: Path | str) -> None:
        """The file that every verb reads, and `ladder.read`."""
        self.value.write(path)

    def predict(
        self, at: str | Mapping[str, float] | None = None, *, level: float | None = None, **x: float
    ) -> Answer:
        """`predict(N=1e9, D=2e10)`; an input whose name is no word of Python in `at`."""
        given = parse_at(at) if isinstance(at, str) else dict(at or {})
        found = _predict(self.value, {**given, **x}, level=level)
        return Answer(found, found.to_json(), found.text(), _html.prediction(found))

    def size(
        self,
        flops: float,
        *,
        inference_tokens: float | None = None,
        serve: str | None = None,
        unique_tokens: float | None = None,
        devices: str | None = None,
        mfu: float | None = None,
        dollars_per_hour: float | None = None,
        at: Mapping[str, float | str] | None = None,
        level: float | None = None,
        anyway: bool = False,
    ) -> Answer:
        """What a budget should buy; `devices` as in h100:1024, `serve` as in prefill=3e12,
        decode=1e12,prefill_mfu=0.5,decode_mfu=0.1, `at` the law's other inputs.
        Learning rate, batch and the run itself are `ladder size`'s, which knows the family."""
        from analysis.devices import parse
        from analysis.plan_figure import plan_figure
        from analysis.planner import size
        from analysis.serve_options import parse_serve

        if devices is None and (mfu is not None or dollars_per_hour is not None):
            raise InputError("mfu", mfu or dollars_per_hour, "name devices too, as in h100:1024")
        machines = parse(devices, mfu=mfu, dollars_per_hour=dollars_per_hour) if devices else None
        found = size(
            self.value, flops, inference_tokens=inference_tokens, devices=machines,
            unique_tokens=unique_tokens, fixed=at, level=level, anyway=anyway,
            inference=parse_serve(serve) if serve else None,
        )  # fmt: skip
        return Answer(
            found, found.to_json(), found.text(), _html.sizing(found),
            lambda: plan_figure(self.value, found),
        )  # fmt: skip

    def answers(
        self, flops: float, *, serve: str, pass_rates: str, level: float | None = None
    ) -> Answer:
        """N, D and answers a request of the highest coverage where training and serving share
        `flops`: `serve` as in requests=1e9,prompt=1000,output=500,aspect=64, `pass_rates` as in
        intercept=6,slope=-3,size=2."""
        from analysis.serve_options import parse_answers, parse_serve
        from analysis.serving import serving_plan

        made = parse_answers(pass_rates, parse_serve(serve))
        found = serving_plan(
            self.value, made.link, made.cost, flops=flops, most=made.most, level=level
        )
        return Answer(found, found.to_json(), found.text(), _html.lines(found.text()))

    def backtest(self) -> Answer:
        """The rolling hold-outs that the fit made."""
        tree = self.value.backtest
        return Answer(tree, tree, "\n".join(tree["lines"]), _html.holdouts(self.value))

    def next(self, *, cost: float, target: float, **options: Any) -> Answer:
        """Which runs to train next for `cost` FLOPs to know `target` FLOPs; `options` are those of
        `analysis.design.next_runs`."""
        from analysis.design import next_runs
        from analysis.design_figure import design_figure

        known(next_runs, options)
        found = next_runs(
            self.value, cost=cost, target=target, **{"observations": self.observations, **options}
        )
        return Answer(
            found, found.to_json(), found.text(), _html.design(found),
            lambda: design_figure(found, options.get("observations"), fit=self.value),
        )  # fmt: skip

    def isoflop(self, *, residual: Literal["log", "linear"] = "log") -> Answer:
        """Each budget's valley, checked against this fit."""
        return _valleys(self._rows("isoflop"), self.value, residual)

    def figure(self, path: Path | str | None = None, *, columns: Literal[1, 2] = 2) -> "Figure":
        """The one figure of the fit, as wide as one column of a page or two; written to `path`
        where given."""
        from analysis.fit_figure import fit_figure

        return saved(fit_figure(self.value, self._rows("figure"), columns=columns), path)

    def report(self, path: Path | str = "report.html", *, title: str = "Scaling sweep") -> Path:
        """One self-contained page."""
        from analysis.isoflop import isoflop
        from analysis.report import write_report

        rows = self._rows("report")
        plane = {"N", "D", "C", "loss"} <= set(rows.columns)
        plane &= {"N", "D"} <= set(self.value.where.law.input_names)
        valleys = isoflop(rows, fit=self.value) if plane else None
        return write_report(path, fit=self.value, observations=rows, isoflop=valleys, title=title)

    def _rows(self, what: str) -> Observations:
        if self.observations is None:
            raise InputError(
                what, "a fit read without its rows", "write ladder.read(path, data=...) with them"
            )
        return self.observations

    def __repr__(self) -> str:
        ranked = self.menu.text() + "\n" if self.menu is not None else ""
        return ranked + self.value.text()

    def _repr_html_(self) -> str:
        return _html.fit(self.value, self.menu)


def fit(
    data: Data,
    *,
    law: str | Law = "chinchilla",
    map: str | Mapping[str, str] | None = None,
    where: str | None = None,
    exclude: Collection[str] = (),
    convention: str | None = None,
    cluster: str | None = None,
    unit: str | None = None,
    by: str | None = None,
    **options: Any,
) -> Fitted:
    """`ladder fit`. `data`: a runs folder, a file, columns by name, a data frame, a list of dicts.
    `law`: a name, `auto`, module:object, or a `Law`. `options` are those of `analysis.fit.fit`:
    huber, reduce, residual, share, multiplier, prior, bootstrap, seed, level, starts."""
    from analysis.fit import fit as solve
    from analysis.menu import choose

    known(solve, options)
    name = name_of(law)
    rows = observed(
        data, law=name, by=by, map=map, where=where, exclude=exclude, convention=convention,
        cluster=cluster, unit=unit,
    )  # fmt: skip
    if by is not None:
        options["by"] = by
    if name == "auto":
        menu = choose(rows, **options)
        return Fitted(menu.fit, rows, menu)
    return Fitted(solve(rows, law=name, **options), rows)


def read(path: Path | str, *, data: Data | None = None, **options: Any) -> Fitted:
    """The fit that `ladder fit --json` wrote; with `data` and its map, where, exclude, ... it has
    its figure and report too."""
    found = read_fit(path)
    if data is None:
        return Fitted(found)
    known(observed, options)
    given = {"by": found.options.get("by"), **options}
    return Fitted(found, observed(data, law=found.law, **given))


def backtest(data: Data, **options: Any) -> Answer:
    """`ladder backtest`: options as for `fit`."""
    return fit(data, **options).backtest()


def isoflop(data: Data, *, residual: Literal["log", "linear"] = "log", **options: Any) -> Answer:
    """`ladder isoflop`: valleys and exponents; options map, where, exclude, convention, cluster."""
    known(observed, options)
    return _valleys(observed(data, also=("C",), **options), None, residual)


def compare(
    a: Fitted | Path | str,
    b: Fitted | Path | str,
    *,
    flops: float | None = None,
    level: float | None = None,
    names: tuple[str, str] = ("A", "B"),
    paired: bool = True,
) -> Answer:
    """`ladder compare`: fits, or files of them. `paired`: also by runs that both recipes have,
    where the rows are at hand."""
    from analysis.compare import compare as both
    from analysis.compare_figure import comparison

    one, other = (x if isinstance(x, Fitted) else read(x) for x in (a, b))
    rows = None
    if paired and one.observations is not None and other.observations is not None:
        rows = (one.observations, other.observations)
    found = both(one.value, other.value, flops=flops, level=level, names=names, observations=rows)
    return Answer(
        found, found.to_json(), found.text(), _html.lines(found.text()),
        lambda: comparison(found, rows),
    )  # fmt: skip


def laws(pattern: str = "") -> Answer:
    """`ladder laws`: one in full by its name, or those that speak of the pattern; all without."""
    from analysis.catalogue import find

    found = find(pattern or None)
    return Answer(found.to_json(), found.to_json(), found.text(), _html.catalogue(found.to_json()))


def _valleys(
    rows: Observations, found: Fit | None, residual: Literal["log", "linear"] = "log"
) -> Answer:
    from analysis.figures import valleys as draw
    from analysis.isoflop import isoflop as valleys

    seen = valleys(rows, fit=found, residual=residual)
    return Answer(
        seen, seen.to_json(), seen.text(), _html.lines(seen.text()), lambda: draw(seen, found)
    )
