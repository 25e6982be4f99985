import numpy as np
import pytest

from raypot.config import build
from raypot.data.splits import SplitConfig
from raypot.data.splits_draw import ROLES, count_roles, draw, group_records, match_files
from raypot.errors import ConfigError


def drawn(n_rows=100, *, records=None, source_files=None, seed=0, test_seed=0, **settings):
    """Draw from columns as `make_split` does."""
    config = build(SplitConfig, settings, "here")
    strategy = "from_files" if config.files else config.strategy
    records = [""] * n_rows if records is None else records
    return draw(
        np.array(records),
        np.array(source_files or ["all.xyz"] * len(records)),
        strategy=strategy,
        sizes=config.sizes,
        patterns=config.files,
        seeds=(seed, test_seed),
    )


def sizes_of(roles):
    return [len(roles[role]) for role in ROLES]


def assert_disjoint(roles, n_rows):
    together = np.concatenate(list(roles.values()))
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < n_rows


@pytest.mark.parametrize(
    ("n_rows", "sizes", "expected"),
    [
        (100, (0.8, 0.1, 0.0, 0.1), [80, 10, 0, 10]),
        (103, (0.8, 0.1, 0.0, 0.1), [83, 10, 0, 10]),
        (107, (0.7, 0.1, 0.1, 0.1), [75, 11, 11, 10]),
        (30, (0.7, 0.1, 0.1, 0.1), [21, 3, 3, 3]),
        (100, (0.29, 0.01, 0.6, 0.1), [29, 1, 60, 10]),
        (1000, ("rest", 0.1, 0.075, 0.075), [750, 100, 75, 75]),
        (1000, (950, 50, 0, 0), [950, 50, 0, 0]),
        (1000, (100, 0.1, 0, "rest"), [100, 100, 0, 800]),
        (100, (0.5, 0.1, 0.1, 0.1), [50, 10, 10, 10]),
        (9, ("rest", 0.1, 0.1, 0.14), [6, 1, 1, 1]),
    ],
)
def test_sizes_become_counts(n_rows, sizes, expected):
    counts = count_roles(dict(zip(ROLES, sizes, strict=True)), n_rows)
    assert [counts[role] for role in ROLES] == expected


@pytest.mark.parametrize(
    ("n_rows", "sizes", "message"),
    [
        (100, (90, 20, 0, 0), r"train 90 \(90\), val 20 \(20\).* do not fit into 100 structures"),
        (100, ("rest", 120, 0, 0), "do not fit into 100 structures; ask for less"),
        (100, (0.9, 0.1, 5, 0), "do not fit into 100"),
        (5, ("rest", 0.1, 0.1, 0.1), "cal and test would be empty: train 4"),
        (10, (0.8, 0.1, 0.1, "rest"), "test would be empty"),
        (0, ("rest", 0, 0, 0), "train would be empty"),
    ],
)
def test_sizes_that_cannot_be_met(n_rows, sizes, message):
    with pytest.raises(ConfigError, match=message):
        count_roles(dict(zip(ROLES, sizes, strict=True)), n_rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0.9, "val": 0.2}, r"the fractions add up to 1.25; expected at most 1"),
        ({"val": 1.5}, "val: 1.5 is not a fraction"),
        ({"val": -3}, "val: -3 is below zero"),
        ({"val": "rest"}, "train and val all ask for the rest"),
        ({"strategy": "from_files"}, "strategy 'from_files' needs files"),
        ({"strategy": "random", "files": {"test": ["a"]}}, "'random' does not read them"),
        ({"files": {"tset": ["a.xyz"]}}, "'tset' is no role; roles are train"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"tran": 0.8}, "unknown key; did you mean train"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(SplitConfig, settings, "run.toml")


def test_none_means_the_rest():
    assert SplitConfig(train=0.5, val=None).val == "rest"
    assert SplitConfig().model_dump()["train"] == "rest"  # so that TOML can say it
    assert SplitConfig(train=1.0, val=0, cal=0, test=0).sizes["train"] == 1.0


def test_fractions_that_do_not_add_up_exactly_are_accepted():
    assert SplitConfig(train=0.6, val=0.3, cal=0.0, test=0.1).train == 0.6


def test_random_roles_cover_all_rows_once():
    roles = drawn(103, strategy="random")
    assert_disjoint(roles, 103)
    assert sum(sizes_of(roles)) == 103
    assert not (np.diff(roles["train"]) > 0).all()


def test_seeds_decide():
    roles, again = drawn(seed=3, test_seed=5), drawn(seed=3, test_seed=5)
    for role in ROLES:
        np.testing.assert_array_equal(roles[role], again[role])
    other = drawn(seed=4, test_seed=5)
    assert set(other["test"]) == set(roles["test"])
    assert set(other["train"]) != set(roles["train"])
    assert set(other["cal"]) != set(roles["cal"])
    assert set(drawn(seed=3, test_seed=6)["test"]) != set(roles["test"])


def test_drawing_is_the_same_on_every_machine():
    roles = drawn(20, strategy="random", seed=42, test_seed=123)
    assert roles["test"].tolist() == np.random.Generator(
        np.random.PCG64([123, 0])
    ).permutation(20)[: len(roles["test"])].tolist()  # fmt: skip


def test_smaller_training_sets_are_parts_of_larger_ones():
    large, small = drawn(train=60), drawn(train=20)
    assert set(small["train"]) < set(large["train"])
    for role in ("val", "cal", "test"):
        assert set(small[role]) == set(large[role])


def test_first_come_cuts_in_order():
    roles = drawn(20, strategy="first_come", train=10, val=5, cal=0, test=3)
    assert roles["train"].tolist() == list(range(10))
    assert roles["val"].tolist() == list(range(10, 15))
    assert roles["test"].tolist() == [15, 16, 17]


RECORDS = [f"molecule{k}" for k in range(40) for _ in range(1 + k % 5)]  # 120 rows


@pytest.mark.parametrize("strategy", ["by_record", "auto"])
def test_a_record_is_in_one_role(strategy):
    roles = drawn(records=RECORDS, strategy=strategy)
    assert_disjoint(roles, len(RECORDS))
    assert sum(sizes_of(roles)) == len(RECORDS)
    names = {role: {RECORDS[row] for row in rows} for role, rows in roles.items()}
    for role in ROLES:
        for other in set(ROLES) - {role}:
            assert not names[role] & names[other]


def test_sizes_of_records_are_met_within_half_a_record():
    for seed in range(5):
        sizes = sizes_of(drawn(records=RECORDS, strategy="by_record", test_seed=seed))
        assert np.abs(np.array(sizes) - [90, 12, 9, 9]).max() <= 6
        assert np.abs(np.array(sizes[1:]) - [12, 9, 9]).max() <= 2


def test_test_records_depend_on_the_test_seed_alone():
    test = set(drawn(records=RECORDS, seed=1)["test"])
    assert set(drawn(records=RECORDS, seed=2)["test"]) == test
    assert set(drawn(records=RECORDS, seed=1, test_seed=2)["test"]) != test


def test_rows_without_a_record_stand_alone():
    assert group_records(np.array(["b", "", "a", "b", ""])).tolist() == [1, 2, 0, 1, 3]
    roles = drawn(records=["run"] * 10 + [""] * 30, strategy="by_record", test=12)
    assert_disjoint(roles, 40)
    assert sum(set(range(10)) <= set(rows) for rows in roles.values()) == 1


def test_one_giant_record_leaves_something_for_every_role():
    records = ["giant"] * 97 + ["a", "b", "c"]
    for seed in range(4):
        roles = drawn(records=records, strategy="by_record", seed=seed, test_seed=seed)
        assert sizes_of(roles) == [97, 1, 1, 1]


def test_too_few_records():
    with pytest.raises(ConfigError, match="3 records cannot fill 4 roles .* strategy = 'random'"):
        drawn(records=["a", "b", "c"] * 20, strategy="by_record")


def test_auto_draws_rows_where_there_is_one_record():
    assert sizes_of(drawn(records=["trajectory"] * 1000)) == [750, 100, 75, 75]


def test_part_of_the_records():
    roles = drawn(records=RECORDS, strategy="by_record", train=30, val=10, cal=0, test=10)
    assert_disjoint(roles, len(RECORDS))
    assert np.abs(np.array(sizes_of(roles)) - [30, 10, 0, 10]).max() <= 2


FILES = ["raw/train_a.xyz"] * 40 + ["raw/train_b.xyz"] * 20 + ["raw/test.xyz"] * 30 + ["odd"] * 10


def drawn_by(patterns):
    return drawn(source_files=FILES, files=patterns)


def test_roles_take_their_files_and_the_others_draw_from_train():
    roles = drawn_by({"train": ["train_*"], "test": ["raw/test.xyz"]})
    assert roles["test"].tolist() == list(range(60, 90))
    assert sizes_of(roles) == [50, 6, 4, 30]
    assert max(roles["train"].max(), roles["val"].max(), roles["cal"].max()) < 60


def test_without_files_train_owns_what_is_left():
    roles = drawn_by({"test": ["test*"]})
    assert sum(sizes_of(roles)) == 100
    assert roles["test"].tolist() == list(range(60, 90))


def test_every_role_from_its_file():
    wanted = {"train": ["train_a*"], "val": ["train_b*"], "test": ["test*"], "cal": ["odd"]}
    roles = drawn_by(wanted)
    assert sizes_of(roles) == [40, 20, 10, 30]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"test": ["none*"]}, r"files.test: 'none\*' matches none of odd, raw/test.xyz"),
        ({"test": ["*.xyz"], "val": ["test*"]}, "raw/test.xyz falls to test and to val"),
    ],
)
def test_patterns_that_do_not_fit(wanted, message):
    with pytest.raises(ConfigError, match=message):
        match_files(np.array(FILES), wanted)
