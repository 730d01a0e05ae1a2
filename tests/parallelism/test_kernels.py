"""Is what a layer puts to a kernel the attention of the plain form, in value and gradient, on one
device and on many, and is it the device's kernel that a program for the device calls?

No GPU and no TPU is needed. The question to cuDNN is put to JAX's own form of the same function,
the kernel for TPU is interpreted, and programs are lowered for devices that are not here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from model.ops.attention import attention
from model.ops.banded_attention import Reach
from parallelism.axes import MeshSpec
from parallelism.kernels import Asked, Chip, Kernel, cudnn, names, pallas, resolve
from parallelism.mesh import make_mesh
from tests.parallelism.shared import Case
from tests.properties import assert_close

SLOW = pytest.mark.slow
MESH = MeshSpec(data=2, tensor=2)
H100, TPU = Chip("cuda", "NVIDIA H100", (9, 0)), Chip("tpu", "TPU v5e")


@dataclass(frozen=True)
class Put(Case):
    """The same attention, put to a kernel."""

    scheme: str = "cudnn"
    mesh: MeshSpec = MeshSpec()

    @cached_property
    def made(self) -> Any:
        mesh = make_mesh(self.mesh)
        if self.scheme == "cudnn":
            return cudnn.Kernel(mesh, implementation="xla")
        return pallas.Kernel(mesh, tile=128, interpret=True)

    @cached_property
    def order(self) -> np.ndarray:
        return np.arange(self.length)

    def of(self, dtype: str) -> dict[str, jax.Array]:
        return {name: jnp.asarray(x, dtype) for name, x in self.arrays.items()}

    def reference(self, arrays: Mapping[str, jax.Array], dy: jax.Array):
        """Outputs and gradients by all scores of every head."""
        y, back = jax.vjp(self.single, arrays)
        return y, back(dy)[0]

    def put(self, arrays: Mapping[str, jax.Array]) -> jax.Array:
        segments_BT = jnp.asarray(self.segments) if self.documents else None
        q, k, v = (arrays[name] for name in ("q", "k", "v"))
        return self.made.softmax(q, k, v, segments_BT, scale=self.scale)

    def plain(self, arrays: Mapping[str, jax.Array]) -> jax.Array:
        segments_BT = jnp.asarray(self.segments) if self.documents else None
        q, k, v = (arrays[name] for name in ("q", "k", "v"))
        return attention(q, k, v, segments_BT, scale=self.scale, blocks=2)


TILES = {"scheme": "pallas", "length": 256, "heads": 2, "kv_heads": 1}
WINDOW = {"band": Reach(blocks=5)}
CASES = {
    "cudnn": {},
    "cudnn one document": {"documents": False},
    "cudnn window": WINDOW,
    "cudnn whole window": {"band": Reach(blocks=16, sinks=2)},
    "cudnn prefix": {"prefix": True},
    "cudnn mesh": {"mesh": MESH, "ahead": 2},
    "pallas": TILES,
}
MORE = {
    "cudnn ahead": {"ahead": 2, "documents": False},
    "pallas one document": TILES | {"documents": False},
    "pallas window": TILES | {"band": Reach(blocks=130)},
    "pallas mesh": TILES | {"heads": 4, "kv_heads": 2, "mesh": MESH},
}
IDS = [pytest.param(knobs, id=name) for name, knobs in CASES.items()]
IDS += [pytest.param(knobs, id=name, marks=SLOW) for name, knobs in MORE.items()]


@pytest.mark.parametrize("knobs", IDS)
def test_a_kernel_computes_the_attention_of_all_scores(knobs: dict, dtype: str = "float32"):
    case = Put(**knobs)
    arrays, dy = case.of(dtype), jnp.asarray(case.probe, dtype)
    y, grads = jax.jit(case.shared)(arrays, dy)
    assert y.dtype == dtype
    with jax.enable_x64(True):
        exact = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
        wanted = jax.jit(case.reference)(exact, np.asarray(dy, np.float64))
    assert_close((y, grads), wanted, dtype=dtype)


@pytest.mark.parametrize(
    "knobs", [pytest.param(k, id=n, marks=SLOW) for n, k in (CASES | MORE).items()]
)
def test_it_does_so_in_bfloat16(knobs: dict):
    test_a_kernel_computes_the_attention_of_all_scores(knobs, dtype="bfloat16")


@pytest.mark.parametrize("name", names())
def test_a_kernel_is_another_program_than_the_plain_form(name: str):
    """Or the comparisons would be of the plain form with itself."""
    case = Put(**(TILES if name == "pallas" else {}))
    arrays = case.of("bfloat16")
    found = str(jax.make_jaxpr(case.put)(arrays))
    plain = str(jax.make_jaxpr(case.plain)(arrays))
    if name == "pallas":
        assert "pallas_call" in found and "pallas_call" not in plain
    else:  # the plain form writes its gradient out
        assert "_heads_first" in plain and "_heads_first" not in found


# -- programs for devices that are not here --------------------------------------------------------


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch):
    """JAX asks cuDNN for its version when it traces. Where there is none (no jax-cuda plugin beside
    nvidia-cudnn), a number is given; all else is as it is.
    """
    try:
        fused.check_cudnn_version()
    except RuntimeError:
        monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)


def lowered(case: Put, platform: str, dtype: str = "bfloat16") -> str:
    """The program of outputs and gradients, for another platform, with the device's own kernel."""
    other = replace(case)
    other.__dict__["made"] = resolve(case.scheme)(make_mesh(case.mesh))
    at = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), case.arrays)
    dy = jax.ShapeDtypeStruct(case.probe.shape, dtype)
    traced = jax.jit(other.shared).trace(at, dy)
    return traced.lower(lowering_platforms=(platform,)).as_text().replace("\\22", '"')


def calls(text: str) -> list[str]:
    """Custom calls to kernels."""
    return re.findall(r"@?\"?(__cudnn\$\w+|tpu_custom_call)\"?\(", text)


GPU = {"per_head": 8}
CALLS = {
    "causal": (GPU | {"documents": False}, "Softmax", "CAUSAL", 0),
    "window": (GPU | WINDOW | {"documents": False}, "Softmax", "CAUSAL", 5),
    "documents": (GPU, "ScaleBiasSoftmax", "CAUSAL", 0),
    "documents window": (GPU | WINDOW, "ScaleBiasSoftmax", "CAUSAL", 5),
    "prefix": (GPU | {"prefix": True}, "ScaleBiasSoftmax", "NO_MASK", 0),
    "ahead": (GPU | {"ahead": 2, "documents": False}, "ScaleBiasSoftmax", "NO_MASK", 0),
}


@pytest.mark.parametrize("knobs, name, mask, window", CALLS.values(), ids=CALLS)
def test_a_program_for_cuda_calls_cudnn(knobs: dict, name: str, mask: str, window: int, version):
    text = lowered(Put(**knobs), "cuda")
    assert set(calls(text)) == {f"__cudnn$fmha{name}", f"__cudnn$fmha{name}Backward"}
    said = set(re.findall(r"mask_type\W+(\w+)", text)), re.findall(r"window_length\W+(\d+)", text)
    assert said == ({mask}, [str(window)] * 2)
    assert re.findall(r'fmha_scale": ([\d.]+)', text) == ["0.3"] * 2


@pytest.mark.parametrize("knobs", [{}, {"band": Reach(blocks=130)}], ids=["causal", "window"])
def test_a_program_for_tpu_calls_the_pallas_kernel(knobs: dict):
    text = lowered(Put(**TILES | knobs), "tpu")
    assert calls(text) == ["tpu_custom_call"] * 3  # forward; gradients of queries; of keys, values
    assert "256x256" not in text, "no scores"


@pytest.mark.parametrize("name, platform", [("cudnn", "cuda"), ("pallas", "tpu")])
def test_on_a_mesh_each_device_calls_it_for_its_rows_and_heads(name: str, platform: str, version):
    knobs = {"rows": 4, "length": 128, "heads": 8, "kv_heads": 4, "per_head": 16, "mesh": MESH}
    text = lowered(Put(scheme=name, **knobs), platform)
    (first, *_) = (line for line in text.splitlines() if calls(line))
    shapes = {"cudnn": ("2x128x4x16xbf16", "2x128x2x16xbf16"),
              "pallas": ("2x4x128x16xbf16", "2x2x128x16xbf16")}[name]  # fmt: skip
    assert all(shape in first for shape in shapes)


# -- what cannot be --------------------------------------------------------------------------------

ABLE = Asked(what="attention", length=256, per_head=64, dtype="bfloat16")


@pytest.mark.parametrize(
    "name, chip, changes, said",
    [
        ("cudnn", TPU, {}, "needs an NVIDIA GPU, and this is TPU v5e"),
        ("cudnn", Chip("rocm", "MI300X"), {}, "needs an NVIDIA GPU"),
        ("cudnn", Chip("cuda", "Tesla V100", (7, 0)), {}, "capability 8.0"),
        ("cudnn", H100, {"dtype": "float32"}, "bfloat16 and not in float32"),
        ("cudnn", H100, {"per_head": 12}, "multiple of 8 up to 256 .* d_head 12"),
        ("cudnn", Chip("cuda", "A100", (8, 0)), {"per_head": 256}, "up to 128 on A100"),
        ("cudnn", H100, {"length": 255}, "even lengths"),
        ("cudnn", H100, {"mapped": True}, "under a mask .* not mapped by jax"),
        ("cudnn", H100, {"ahead": 3}, "256 positions and 259 keys"),
        ("cudnn", H100, {"band": Reach(blocks=9, sinks=4)}, "keeps 4 first positions in sight"),
        ("pallas", TPU, {"band": Reach(blocks=2, block=8)}, "whole blocks of 8"),
        ("pallas", H100, {}, "written for TPU, and this is NVIDIA H100"),
        ("pallas", TPU, {"length": 200}, "multiple of 128 positions"),
        ("pallas", TPU, {"later": True}, "see later ones"),
        ("pallas", TPU, {"ahead": 8}, "8 learned more"),
    ],
)
def test_what_a_kernel_cannot_compute_it_refuses(name, chip, changes, said):
    reason = resolve(name).refusal(replace(ABLE, **changes), chip)
    assert reason is not None and re.search(said, reason)


@pytest.mark.parametrize("name, chip", [("cudnn", H100), ("pallas", TPU)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"band": Reach(blocks=9)}, {"band": Reach(blocks=256, sinks=4)}, {"documents": False}],
    ids=str,
)
def test_what_it_can_compute_it_takes(name: str, chip: Chip, changes: dict):
    assert resolve(name).refusal(replace(ABLE, **changes), chip) is None


def test_without_cudnn_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "cuda_versions", None)
    assert "cuDNN is not detected" in str(resolve("cudnn").absent(H100))


def test_every_file_is_a_kernel():
    assert names() == ["cudnn", "pallas"]
    assert all(issubclass(resolve(name), Kernel) for name in names())
