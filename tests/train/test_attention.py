"""Does a run take the kernel that its chip has, say why it takes no other, and train the same model
with it? Programs are lowered for chips that are not here.
"""

from dataclasses import replace
from typing import Any

import jax
import pytest

from model import archs
from model.decoder import build
from parallelism.accelerators import find
from parallelism.axes import MeshSpec
from parallelism.errors import InputError
from parallelism.kernels import Chip, cudnn
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding
from tests.parallelism.test_kernels import H100, TPU, calls, version
from tests.properties import assert_close, batch, mean_loss, trained_params
from train.attention import choice, kernel, tell
from train.estimate import estimate
from train.paths import put
from train.programs import (
    abstract_batch,
    devices,
    resolved_execution,
    shape_key,
    state_shardings,
    traced,
)
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state

__all__ = ["version"]  # a fixture
BF16 = {"execution.compute_dtype": "bfloat16"}
STAGES = {"execution.mesh.pipeline": 2, "data.isolate_documents": False}
STACK = {
    "execution.stack": 2,
    "execution.mesh.run": 2,
    "execution.mesh.data": 2,
    "data.isolate_documents": False,
}
WINDOW = {"model.repeat.0.mixer.sinks": 0, "model.repeat.0.mixer.window": 32}


def run(arch: Any = "dense", width: Any = 64, **changes: Any) -> RunSpec:
    fixed = {"data.seq_len": 128, "budget.batch_tokens": 8 * 128, "execution.layers": "scan"}
    return put(RunSpec(model=archs.build(arch, width)), fixed | changes)


def taken(spec: RunSpec, chip: Chip) -> str:
    dtype = resolved_execution(spec, chip)["compute_dtype"]
    return choice(spec, dtype=dtype, chip=chip).name


@pytest.mark.parametrize(
    "arch, changes, on_gpu, on_tpu",
    [
        ("dense", {}, "cudnn", "pallas"),
        ("dense", {"execution.attention": "plain"}, "plain", "plain"),
        ("dense", {"execution.compute_dtype": "float32"}, "plain", "pallas"),
        ("dense", {"execution.mesh.sequence": 2}, "plain", "plain"),
        ("dense", {"execution.remat": "stream"}, "plain", "plain"),
        ("dense", {"execution.mesh.pipeline": 2}, "plain", "pallas"),
        ("dense", {"execution.stack": 2}, "plain", "pallas"),
        ("dense", STAGES, "cudnn", "pallas"),
        ("dense", {"data.seq_len": 64}, "cudnn", "plain"),
        ("sliding_window", {}, "plain", "plain"),  # sinks
        ("sliding_window", WINDOW, "cudnn", "pallas"),
        ("ssd", {}, "plain", "plain"),
        ("hybrid", {}, "cudnn", "pallas"),
        ("diffusion", {}, "cudnn", "plain"),
        ("span_mixture", {}, "cudnn", "pallas"),
        ("span_mixture", {"objective.bidirectional_prefix": True}, "cudnn", "plain"),
        ("parscale", {}, "cudnn", "plain"),
        ("encoder_decoder", {}, "cudnn", "plain"),
    ],
)
def test_auto_takes_what_the_chip_has(arch, changes, on_gpu, on_tpu, version):
    spec = run(arch, **changes)
    assert (taken(spec, H100), taken(spec, TPU)) == (on_gpu, on_tpu)
    assert taken(spec, Chip("rocm", "AMD Instinct MI300X")) == "plain"
    assert taken(spec, Chip("cpu", "cpu")) == "plain"


def test_the_record_says_which_and_why_not_the_others():
    said = devices(run())
    assert said["resolved"]["attention"] == "plain"
    assert said["kernels_refused"] == {
        "cudnn": "needs an NVIDIA GPU, and this is cpu",
        "pallas": "is written for TPU, and this is cpu",
    }


def test_a_plain_form_where_the_chip_has_a_kernel_is_said(version, capsys):
    for spec, chip in ((run(), H100), (run("ssd"), H100), (run("sliding_window"), Chip("cpu", ""))):
        tell(spec, dtype="bfloat16", chip=chip)
    assert not capsys.readouterr().err
    tell(run("sliding_window"), dtype="bfloat16", chip=H100)
    said = capsys.readouterr().err
    assert said.startswith("attention: the plain form; cudnn sliding_window keeps 4 first")


@pytest.mark.parametrize(
    "chip, changes, said",
    [
        (None, {"execution.attention": "cudnn"}, "execution.attention: cudnn; needs an NVIDIA GPU"),
        (TPU, {"execution.attention": "pallas", "execution.mesh.sequence": 2}, "needs whole rows"),
        (TPU, {"execution.attention": "pallas", "execution.remat": "stream"}, "remat=stream"),
        (
            H100,
            {"execution.attention": "cudnn", "execution.compute_dtype": "float32"},
            "not in flo",
        ),
    ],
)
def test_a_named_kernel_that_cannot_be_is_refused_before_anything_is_traced(
    chip: Chip | None, changes: dict, said: str, version
):
    spec = run(**changes)
    with pytest.raises(InputError, match=said) as refused:
        traced(spec, build(spec.model), make_mesh(MeshSpec()), chip=chip)
    assert "write auto or plain" in str(refused.value) and "\n" not in str(refused.value)


def test_a_kernel_changes_the_program_and_no_run_id(version):
    plain, own = (run(**BF16, **{"execution.attention": a}) for a in ("plain", "cudnn"))
    assert plain.run_id == own.run_id and shape_key(plain) != shape_key(own)
    assert kernel(plain, make_mesh(MeshSpec()), dtype="bfloat16", chip=H100) is None


# -- the model with a kernel -----------------------------------------------------------------------

MODELS = {
    "grouped queries": ("dense", {"model.repeat.0.mixer.queries_per_kv": 2}),
    "window": ("sliding_window", {**WINDOW, "model.repeat.0.mixer.window": 5}),
    "both ways": ("diffusion", {}),
    "streams": ("parscale", {}),
    "encoder": ("encoder_decoder", {}),
    "spans": ("elastic_span", {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "grouped queries")) for n in MODELS]
)
def test_a_model_with_a_kernel_is_the_same_model(name: str):
    """Loss and gradient of every parameter; the question to cuDNN is put to JAX's own form."""
    arch, changes = MODELS[name]
    spec = run(arch, 32, **changes).model
    # one layer, where the architecture is not made of more
    model = build(replace(spec, n_layers=1) if spec.n_layers == 2 else spec)
    data = batch(2, 16, source=12 if arch == "encoder_decoder" else None)
    params = trained_params(model)
    found = {}
    for own in (None, cudnn.Kernel(make_mesh(MeshSpec()), implementation="xla")):
        loss = jax.value_and_grad(mean_loss(model, kernel=own, layers="unroll"))
        text = str(jax.make_jaxpr(loss)(params, data))
        found[text] = jax.jit(loss)(params, data)
    plain, own = found.values()  # two programs
    assert_close(own, plain, what=name)


# -- its cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, chip", [("cudnn", "h100"), ("pallas", "tpu_v5e")])
def test_the_cost_model_counts_a_kernel_without_its_scores(name: str, chip: str):
    """On any machine. A kernel makes scores anew in the backward pass, and none above the diagonal;
    the plain form skips a quarter of them (two blocks of queries) and keeps the rest in float32.
    """
    spec = run(**{"execution.mesh.data": 2, "execution.mesh.tensor": 2})
    own = estimate(put(spec, {"execution.attention": name}), chip=find(chip))
    plain = estimate(put(spec, {"execution.attention": "plain"}), chip=find(chip))
    assert not own.unknown and own == estimate(spec, chip=find(chip)), "auto takes it"
    (sizes,) = (block.mixer.sizes(spec.model.shared_sizes) for block in spec.model.repeat)
    T, layers, ways = 128, spec.model.n_layers, 4
    each = layers * 8 * sizes["H"] // ways
    pairs = 6 * 0.75 * T * T - 7 * T * (T + 1) / 2
    assert plain.flops - own.flops == pytest.approx(2 * each * sizes["K"] * pairs, rel=1e-6)
    masks = 2 * 2 * 4 * T * T * (name == "cudnn")  # of 4 rows and one layer, and its gradient
    assert plain.temporary - own.temporary > 0.75 * 4 * each * T * T - masks > 0


def test_a_kernel_that_a_planned_chip_has_not_is_refused():
    with pytest.raises(InputError, match="written for TPU, and this is h100"):
        estimate(run(**{"execution.attention": "pallas"}), chip=find("h100"))


# -- a whole training step for chips that are not here ---------------------------------------------


def lowered(spec: RunSpec, chip: Chip) -> str:
    model, mesh = build(spec.model), make_mesh(spec.execution.mesh)
    state = abstract_state(model)
    placed = (state_shardings(model, state, mesh), None, batch_sharding(mesh))
    numbers = {k: jax.ShapeDtypeStruct((), v.dtype) for k, v in hyper(spec).items()}
    given = (state, numbers, abstract_batch(spec))
    step, runs = traced(spec, model, mesh, chip=chip)[0], spec.execution.stack
    if runs > 1:  # as train/programs.py maps it
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), given)
        jitted = jax.jit(jax.vmap(step, spmd_axis_name="run"))
    else:
        jitted = jax.jit(step, in_shardings=placed)
    found = jitted.trace(*given)
    return found.lower(lowering_platforms=(chip.platform,)).as_text()


MESH = {"execution.mesh.data": 2, "execution.mesh.fsdp": 2, "execution.mesh.tensor": 2}
FULL = {"execution.remat": "full"}
SLOW = pytest.mark.slow
SIMPLE, FORWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"
BACKWARD = f"{FORWARD}Backward"


@pytest.mark.parametrize(
    "chip, changes, wanted",
    [
        pytest.param(H100, {}, [FORWARD, BACKWARD], id="cuda"),
        pytest.param(TPU, {}, ["tpu_custom_call"] * 3, id="tpu"),
        pytest.param(H100, MESH | FULL, [FORWARD, FORWARD, BACKWARD], id="cuda mesh", marks=SLOW),
        pytest.param(TPU, MESH | FULL, ["tpu_custom_call"] * 4, id="tpu mesh", marks=SLOW),
        pytest.param(TPU, STAGES, ["tpu_custom_call"] * 3, id="tpu stages", marks=SLOW),
        pytest.param(TPU, STACK, ["tpu_custom_call"] * 3, id="tpu stack", marks=SLOW),
        pytest.param(H100, STACK, [SIMPLE, f"{SIMPLE}Backward"], id="cuda stack", marks=SLOW),
        pytest.param(H100, STAGES, [SIMPLE, f"{SIMPLE}Backward"], id="cuda stages", marks=SLOW),
    ],
)  # fmt: skip
def test_a_training_step_calls_the_kernel(chip: Chip, changes: dict, wanted: list, version):
    """Layers are scanned, so once whatever their number: forward, remade where asked, backward."""
    spec = run(**{"model.repeat.0.mixer.d_head": 16, **changes})
    assert sorted(calls(lowered(spec, chip))) == sorted(wanted)


@SLOW
def test_a_step_of_the_plain_form_calls_none():
    spec = run(**{"execution.attention": "plain"})
    assert not calls(lowered(spec, H100)) and not calls(lowered(spec, TPU))
