"""The sweep algebra: lists of cells in, lists of cells out."""

from typing import Any

import pytest

from parallelism.errors import InputError
from sweeps.grid import axis, chain, product, where, zipped

NOT_A_LIST: Any = 1e-3


def test_product_has_every_combination_once_with_the_last_factor_fastest():
    cells = product(axis("a", [1, 2]), axis("b", [3, 4, 5]))
    assert cells == [{"a": i, "b": j} for i in (1, 2) for j in (3, 4, 5)]


def test_zip_pairs_the_cells_of_its_factors():
    assert zipped(axis("a", [1, 2]), axis("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_chain_keeps_order_and_drops_repeated_cells():
    assert chain(axis("a", [1, 2]), axis("a", [2, 3])) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_where_keeps_the_cells_that_hold():
    cells = product(axis("a", [1, 2, 3]), axis("b", [1, 2, 3]))
    kept = where(cells, lambda cell: cell["a"] < cell["b"])
    assert kept == [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_factors_do_not_share_cells_with_their_result():
    factor = axis("a", [1])
    product(factor, axis("b", [2]))[0]["a"] = 9
    assert factor == [{"a": 1}]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: product(axis("a", [1]), axis("a", [2])), "a"),
        (lambda: zipped(axis("a", [1]), axis("b", [2, 3])), "zipped"),
        (lambda: axis("optim.lr", []), "optim.lr"),
        (lambda: axis("optim.lr", "1e-3"), "optim.lr"),
        (lambda: axis("optim.lr", NOT_A_LIST), "optim.lr"),
    ],
)
def test_grids_that_cannot_be_are_refused_by_name(make, named):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.field == named
