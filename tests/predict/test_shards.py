"""Shards and ranks: every case once."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from sparseg.errors import ConfigError
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.shards import Rank, Shard, find_rank, parse_shard

CASES = [PredictionCase(name, Path(name), Path(name)) for name in "gbadfec"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_all_shards_together_have_each_case_once(count):
    parts = [[case.name for case in Shard(index, count).of(CASES)] for index in range(1, count + 1)]
    assert sorted(chain.from_iterable(parts)) == list("abcdefg")
    assert parts[0] == list("abcdefg")[::count]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_reading_a_shard():
    assert parse_shard("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/2/3", "", "1 /2", "\u0661/2"])
def test_what_is_no_shard(text):
    with pytest.raises(ConfigError, match="--shard 1/4") as caught:
        parse_shard(text)
    assert repr(text) in str(caught.value)


def test_ranks_of_a_launcher():
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    rank = find_rank(variables)
    assert rank == Rank(5, 8, 1, 2, has_meeting_point=False)
    assert rank.shard == Shard(6, 8)
    assert find_rank(variables | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}).has_meeting_point
    for alone in ({}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "8"}, {"RANK": "", "WORLD_SIZE": "8"}):
        assert find_rank(alone) is None


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "device"),
    [("cuda", 8, "cuda:3"), ("cuda", 2, "cuda:1"), ("cuda", 0, "cuda"), ("cpu", 8, "cpu"), ("mps", 0, "mps")],
)
def test_the_device_of_a_rank(wanted, num_gpus, device):
    assert Rank(11, 16, 3).device(wanted, num_gpus) == device
