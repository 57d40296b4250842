"""Recipes and shards: what is identity, and which rows a shard holds."""

import pytest

from data_contracts.sources import SceneSource
from tasks import recipes
from tasks.row_ranges import overlapping, shard_range


def test_scene_identity_is_its_settings_not_its_name():
    source = SceneSource(name="a", num_images=300, seed=3)
    recipe = recipes.scenes_recipe(source)
    assert recipes.scenes_recipe(source.model_copy(update={"name": "b"})) == recipe
    assert recipe.num_shards == 3
    for change in ({"seed": 4}, {"num_images": 301}, {"split": "test"}, {"print_scale": 2.0}):
        assert recipes.scenes_recipe(source.model_copy(update=change)).ref != recipe.ref


@pytest.mark.parametrize(
    ("num_rows", "num_shards"), [(0, 1), (1, 1), (7, 3), (8, 3), (9, 3), (2, 5), (1000, 7)]
)
def test_even_shards_hold_every_row_once(num_rows: int, num_shards: int):
    shares = [shard_range(num_rows, num_shards, index) for index in range(num_shards)]
    assert [row for share in shares for row in share] == list(range(num_rows))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (range(2), [(0, range(2))]),
        (range(2, 6), [(0, range(2, 3)), (2, range(3))]),
        (range(9), [(0, range(3)), (2, range(4)), (3, range(2))]),
        (range(7, 9), [(3, range(2))]),
        (range(4, 4), []),
    ],
)
def test_rows_are_found_across_shards_of_uneven_size(wanted: range, found: list):
    assert overlapping([3, 0, 4, 2], wanted) == found
