"""What does every test run on? Eight host devices, set before anything imports jax."""

import os
from collections.abc import Callable
from importlib import metadata

FLAGS = ["--xla_force_host_platform_device_count=8"]
jaxlib = metadata.version("jaxlib")  # XLA aborts on a flag that it does not know
if jaxlib.startswith(("0.10.", "0.12.")):
    # less time to compile (a quarter of it on 0.10, with the flag below; a fifth of a test's less
    # on 0.12); XLA's own passes stay on, and no property depends on these
    FLAGS += ["--xla_backend_optimization_level=0"]
    FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]  # a program of a test is too small to cut
if jaxlib.startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["WANDB_MODE"] = "disabled"

from functools import partial  # noqa: E402  the environment comes first
from pathlib import Path  # noqa: E402

import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from model.ops import attention  # noqa: E402
from tests import properties  # noqa: E402
from tests.data.corpora import texts, write_folder  # noqa: E402
from train.spec import SourceSpec  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    for room in properties.ROOMS:
        parser.addoption(
            f"--{room.removesuffix('s')}",
            action="append",
            default=[],
            metavar="MODULE",
            help=f"hold the layer of this module to the properties of model/{room} too",
        )


def pytest_configure(config: pytest.Config) -> None:
    for room in properties.ROOMS:
        given = config.getoption(f"--{room.removesuffix('s')}")
        properties.USERS += [(room, module) for module in given]  # pyright: ignore[reportOptionalIterable]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is allowed the most time comes first: at the end, one core would wait for it."""

    def allowed(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return float(mark.args[0]) if mark else 0.0

    items.sort(key=allowed, reverse=True)


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _rooted(folder: Path, suite_folder: Path) -> Path:
    """A new --root whose cache (programs, tokenised text) is shared by the session."""
    shared = suite_folder / "shared-cache"
    shared.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    (folder / ".cache").symlink_to(shared, target_is_directory=True)
    return folder


@pytest.fixture
def root(tmp_path: Path, suite_folder: Path) -> Path:
    """An empty root, in a folder of the test's own."""
    return _rooted(tmp_path / "runs", suite_folder)


@pytest.fixture(scope="session")
def new_root(tmp_path_factory: pytest.TempPathFactory, suite_folder: Path) -> Callable[[str], Path]:
    """Makes an empty root for fixtures that several tests share."""
    return lambda name: _rooted(tmp_path_factory.mktemp(name), suite_folder)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SourceSpec:
    """A folder of some 150 kB of text."""
    return write_folder(tmp_path_factory.mktemp("corpus"), texts(240))


@pytest.fixture
def no_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms, scores and logits are float32 by name in any compute type: read those as float64."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    wide = partial(jnp.einsum, preferred_element_type=jnp.float64)
    monkeypatch.setattr(attention, "_product", wide)
