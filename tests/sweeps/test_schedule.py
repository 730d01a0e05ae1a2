"""Which cell comes next."""

import pytest

from model.archs import build
from sweeps.launch.machine import cores, shares
from sweeps.launch.schedule import Cell, choose, shape_of, together
from train.paths import put
from train.spec import RunSpec

SPEC = RunSpec(model=build("dense", 64), seed=0)


def of(name: str, shape: str, flops: float) -> Cell:
    return Cell(name, SPEC, shape, flops)


def test_the_longest_cell_comes_first():
    cells = [of("a", "s", 1.0), of("b", "t", 9.0), of("c", "u", 3.0)]
    chosen = choose(cells, compiled=set(), elsewhere=set())
    assert chosen is not None and chosen.run_id == "b"


def test_a_compiled_shape_is_preferred_among_cells_of_about_the_same_length():
    cells = [of("a", "new", 9.0), of("b", "mine", 5.0), of("c", "mine", 1.0)]
    chosen = choose(cells, compiled={"mine"}, elsewhere=set())
    assert chosen is not None and chosen.run_id == "b"


def test_a_compiled_shape_does_not_come_before_a_much_longer_cell():
    cells = [of("a", "new", 9.0), of("c", "mine", 1.0)]
    chosen = choose(cells, compiled={"mine"}, elsewhere=set())
    assert chosen is not None and chosen.run_id == "a"


def test_a_shape_that_another_worker_is_compiling_comes_later():
    cells = [of("a", "theirs", 9.0), of("b", "free", 8.0)]
    chosen = choose(cells, compiled=set(), elsewhere={"theirs"})
    assert chosen is not None and chosen.run_id == "b"


def stacked(n: int, **execution: int) -> list[Cell]:
    """Cells of one shape and of 1, 2, ... FLOPs."""
    spec = put(SPEC, {f"execution.{k.replace('_', '.')}": v for k, v in execution.items()})
    return [Cell(str(i), spec, "s", float(i + 1)) for i in range(n)]


@pytest.mark.parametrize(
    ("cells", "workers", "names", "places"),
    [
        (stacked(5), 1, "4", 1),
        (stacked(5, stack=8), 1, "43210", 5),
        (stacked(5, stack=4), 1, "432", 3),  # in equal parts
        (stacked(8, stack=8), 2, "7654", 4),  # a part for each worker
        (stacked(3, stack=8), 8, "2", 1),
        ([*stacked(8, stack=8), of("x", "other", 1.0)], 2, "76543210", 8),
        ([*stacked(2, stack=8), of("x", "s", 1.0)], 1, "10", 2),  # that one wants no stack
        (stacked(5, stack=4, mesh_run=2), 1, "4321", 4),  # the run axis divides the places
    ],
)
def test_cells_of_one_shape_are_stacked_in_equal_parts(cells, workers, names, places):
    first = choose(cells, compiled=set(), elsewhere=set())
    assert first is not None
    found, made = together(first, cells, workers=workers, places=None)
    assert ("".join(one.run_id for one in found), made) == (names, places)


def test_a_stack_keeps_the_places_that_its_program_has():
    cells = stacked(2, stack=4)
    found, places = together(cells[0], cells, workers=1, places=3)
    assert len(found) == 2 and places == 3


def test_nothing_is_left_when_nothing_pends():
    assert choose([], compiled=set(), elsewhere=set()) is None


def test_hyper_parameters_tokens_and_seed_share_a_shape_and_sizes_do_not():
    same = {
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.0,
        "budget.tokens": 10**6,
        "seed": 5,
        "schedule.kind": "wsd",
    }
    for path, value in same.items():
        assert shape_of(put(SPEC, {path: value})) == shape_of(SPEC), path
    other = {
        "data.seq_len": 128,
        "budget.batch_tokens": 4096,
        "model.vocab": 512,
        "execution.remat": "full",
        "model.parametrisation.kind": "standard",
        "execution.mesh.data": 2,
        "execution.residuals": "sharded",
        "execution.attention": "plain",
    }
    for path, value in other.items():
        assert shape_of(put(SPEC, {path: value})) != shape_of(SPEC), path


def test_shapes_agree_with_the_trainers_own_key():
    from train.programs import shape_key

    specs = [put(SPEC, c) for c in ({}, {"optim.lr": 1e-4}, {"data.seq_len": 128}, {"seed": 3})]
    for a in specs:
        for b in specs:
            assert (shape_of(a) == shape_of(b)) == (shape_key(a) == shape_key(b))


def test_workers_share_out_the_cores():
    everything = cores()
    assert shares(1) == [everything]
    split = shares(len(everything))
    assert sorted(core for share in split for core in share) == everything
    assert shares(len(everything) + 1) == [everything] * (len(everything) + 1)
