"""Does each parametrisation follow its table? Recomputed here from the shapes."""

import math
from dataclasses import replace

import pytest

from model import archs, scaling
from model.decoder import build
from model.spec import ModelSpec, Parametrisation

BASE, WIDE = 64, 256
M = WIDE / BASE


def dense(d_model: int, **rule) -> ModelSpec:
    spec = archs.build("dense", d_model)
    return replace(spec, n_layers=2, parametrisation=Parametrisation(base_d_model=BASE, **rule))


def multipliers(spec: ModelSpec) -> dict[str, tuple[float, float, float]]:
    rows = {p: d.scaling for p, d in build(spec).declarations.items()}
    return {p: (s.lr, s.weight_decay, s.forward) for p, s in rows.items()}


def role(path: str) -> str:
    """By name, not by what the code declared."""
    *_, scope, name = ("", *path.split("."))
    if path in ("embed", "positions"):
        return "table"
    if path == "readout":
        return "readout"
    if name.endswith(("gain", "bias")) or scope.endswith("norm"):
        return "vector"
    return "residual" if name == "out" else "hidden"


@pytest.mark.parametrize("name", ["dense", "gpt2"])
def test_every_parameter_has_a_role_and_a_covered_rule(name: str):
    for path, d in build(archs.build(name, 64)).declarations.items():
        assert d.role == role(path), path
        assert d.scaling.covered


def test_at_the_base_width_every_multiplier_is_one():
    for path, (lr, decay, forward) in multipliers(dense(BASE)).items():
        assert (lr, forward) == (1.0, 1.0), path
        assert decay == (0.0 if role(path) in ("table", "vector") else 1.0), path


def test_standard_keeps_every_multiplier_at_one_at_any_width():
    for path, (lr, _, forward) in multipliers(dense(WIDE, kind="standard")).items():
        assert (lr, forward) == (1.0, 1.0), path


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_mup_multiplies_matrices_by_the_width_multiple_and_nothing_else(exponent: float):
    seen = set()
    wide = dense(WIDE, weight_decay_exponent=exponent, output_multiplier=3.0)
    for path, (lr, decay, forward) in multipliers(wide).items():
        expected = {
            "hidden": (1 / M, M**exponent, 1.0),
            "residual": (1 / M, M**exponent, 1.0),
            "readout": (1.0, 1.0, 3.0 / M),
            "table": (1.0, 0.0, 1.0),
            "vector": (1.0, 0.0, 1.0),
        }[role(path)]
        assert (lr, decay, forward) == pytest.approx(expected), path
        seen.add(role(path))
    assert len(seen) == 5


@pytest.mark.parametrize("kind", ["mup", "standard"])
def test_initial_spread_is_fan_in_with_the_residual_divided_by_depth(kind: str):
    spec = dense(WIDE, kind=kind, embed_std=0.3)
    sizes = {"D": WIDE, "H": WIDE // 16, "K": 16, "F": round(8 / 3 * WIDE / 8) * 8}
    for path, d in build(spec).declarations.items():
        fan_in = math.prod(sizes[c] for c in d.contract)
        expected = {
            "hidden": fan_in**-0.5,
            "residual": fan_in**-0.5 / math.sqrt(2 * 2),
            "readout": 0.0 if kind == "mup" else fan_in**-0.5,
            "table": 0.3,
            "vector": 0.0,
        }[d.role]
        assert d.scaling.std == pytest.approx(expected), path


def test_a_tied_table_reads_out_with_the_width_multiple():
    rule = Parametrisation(base_d_model=BASE, output_multiplier=2.0)
    assert scaling.tied_readout_scale(rule, d_model=WIDE) == pytest.approx(2.0 / M)
    plain = replace(rule, kind="standard")
    assert scaling.tied_readout_scale(plain, d_model=WIDE) == 2.0


def test_attention_scales_agree_at_the_base_and_fall_as_one_over_k_in_mup():
    mup, standard = Parametrisation(base_d_head=64), Parametrisation(kind="standard")
    for rule in (mup, standard, Parametrisation()):
        assert scaling.attention_scale(rule, per_head=64) == 64**-0.5
    assert scaling.attention_scale(mup, per_head=256) == 8 / 256
    assert scaling.attention_scale(standard, per_head=256) == 1 / 16


def test_a_family_whose_heads_widen_scales_its_scores_by_the_base_head():
    narrow, wide = (archs.build("dense", d).parametrisation for d in (64, 1024))
    assert narrow == wide and narrow.base_d_head == 16
    heads = [archs.build("dense", d).repeat[0].mixer.d_head for d in (64, 1024)]
    assert heads == [16, 64]
    assert scaling.attention_scale(wide, per_head=64) == 4 / 64


def test_an_unknown_role_is_an_error():
    with pytest.raises(ValueError, match="unknown role 'matrixx'; a parameter is one of hidden"):
        scaling.scaling(
            "matrixx",
            contract=(),
            sizes={},
            base={},
            rule=Parametrisation(),
            n_layers=1,
            tied=False,
        )


@pytest.mark.parametrize("width", archs.widths("dense")[:24])
def test_rounding_of_sizes_stays_out_of_the_learning_rates(width: int):
    """Hidden widths are rounded to multiples of 8; the multiple is that of d_model all the same."""
    for path, (lr, _, _) in multipliers(dense(width)).items():
        if role(path) in ("hidden", "residual"):
            assert lr == pytest.approx(BASE / width), path
