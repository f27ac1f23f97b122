"""What is seen of a network from outside: seconds per part, and how far each patch's token came."""

from __future__ import annotations

import numpy as np
import torch

from predict.threshold_model import tiny_card, tiny_net
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.predict.watch import NetworkWatch, TokenMap
from sparseg.volumes.volume import Volume


def random_volume(shape: tuple[int, int, int]) -> Volume:
    values = np.random.default_rng(3).normal(0, 1, (1, *shape)).astype(np.float32)
    return Volume(values, np.diag([1.5, 1.5, 2.0, 1.0]))


def test_one_window_maps_the_stages_of_its_tokens() -> None:
    net = tiny_net()
    image = random_volume((16, 16, 16))
    predictor = Predictor(net, tiny_card(net), PredictSettings(previews=True, keep_empty=True))
    depth = predictor.run_windows(image).depth
    with torch.inference_mode():
        _, stages = net(torch.from_numpy(image.array)[None], return_stages=True)
    expected = np.zeros(64, np.uint8)
    for number, group in enumerate(stages, start=1):
        expected[group.indices[0].numpy()] = number
    assert depth is not None
    np.testing.assert_array_equal(depth, expected.reshape(4, 4, 4))
    assert np.bincount(depth.ravel())[0] == 0


def test_a_small_volume_keeps_only_its_own_patches() -> None:
    net = tiny_net()
    predictor = Predictor(net, tiny_card(net), PredictSettings(previews=True, keep_empty=True))
    depth = predictor.run_windows(random_volume((9, 16, 20))).depth
    assert depth is not None
    assert depth.shape == (3, 4, 5)
    assert depth.min() >= 1


def test_the_nearest_window_is_shown() -> None:
    grid = TokenMap((8, 4, 4), (4, 4, 4), (8, 4, 4))
    grid.add([(0, 0, 0)], [np.array([[0]]), np.array([[1]])])
    np.testing.assert_array_equal(grid.depth[:, 0, 0], [1, 2])
    far = TokenMap((12, 4, 4), (4, 4, 4), (12, 4, 4))
    far.add([(0, 0, 0)], [np.array([[0, 1, 2]])])  # the middle token is nearest to this window's centre
    far.add([(4, 0, 0)], [np.array([[2]]), np.array([[0, 1]])])
    np.testing.assert_array_equal(far.depth[:, 0, 0], [1, 1, 2])


def test_windows_in_the_padding_are_cut_off() -> None:
    grid = TokenMap((4, 4, 4), (4, 4, 4), (8, 4, 4))
    grid.add([(-3, 0, 0)], [np.array([[1]]), np.array([[0]])])
    assert grid.depth.shape == (1, 1, 1)
    assert grid.depth[0, 0, 0] == 1  # the second token reaches from voxel 1 to 4, the first ends at 0


def test_the_seconds_of_the_parts_are_within_those_of_the_call() -> None:
    net = tiny_net()
    with NetworkWatch(net) as watch, torch.inference_mode():
        net(torch.zeros(1, 1, 16, 16, 16))
    assert all(value > 0 for value in watch.seconds.values())
    before = dict(watch.seconds)
    net(torch.zeros(1, 1, 16, 16, 16))  # the hooks are gone
    assert watch.seconds == before
    assert watch.depth is None
