"""The Primus-class host: rotary positions that travel with the tokens, and a decoder of tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.errors import ConfigError
from sparseg.models.autoencoder import MaskedAutoencoder
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig
from sparseg.models.light_decoder import LightDecoder, ladder_widths
from sparseg.models.segmenter import SparseUNETR

EVA: dict[str, Any] = {"block": "eva", "mlp_ratio": 8 / 3, "class_token": False, "decoder": "light"}


def tiny(seed: int = 0, **options: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", **{**EVA, **options}).eval()


def image(seed: int = 1, size: tuple[int, int, int] = (16, 16, 16)) -> Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(seed))


def test_keeping_every_token_is_the_dense_encoder() -> None:
    """Pruned and put back in another order, tokens keep their places: same weights, same tokens."""
    sparse, dense = tiny(keep_ratio=1.0), tiny(pruning_stages=())
    dense.encoder.load_state_dict(
        {key: value for key, value in sparse.encoder.state_dict().items() if "prunings" not in key}
    )
    with torch.no_grad():
        a, b = (net.encoder(image()).stages[-1].tokens for net in (sparse, dense))
    assert (a - b).abs().max() < 1e-5


def test_survivors_are_turned_by_their_own_places() -> None:
    """Blocks behind a pruning stage see what a dense encoder sees that holds the survivors alone."""
    net = tiny(pruning_stages=(0,), keep_ratio=0.25, scoring="random").train()
    x = image()
    with torch.no_grad():
        torch.manual_seed(3)
        found = net.encoder(x)
        survivors = found.stages[-1]
        masked = MaskedAutoencoder(net.config)
        masked.encoder.load_state_dict(
            {key: value for key, value in net.encoder.state_dict().items() if "prunings" not in key}
        )
        expected = masked.encode(x, survivors.indices)
        assert (net.encoder.norm(survivors.tokens) - expected).abs().max() < 1e-5
        elsewhere = survivors.indices.flip(0)
        assert not torch.equal(elsewhere, survivors.indices)
        assert (masked.encode(x, elsewhere) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16, 16), (20, 16, 12)])
def test_positions_are_those_of_the_window_at_hand(size: tuple[int, int, int]) -> None:
    net = tiny(pruning_stages=())
    grid = tuple(edge // 4 for edge in size)
    table = net.encoder.rotary_places(grid)  # type: ignore[arg-type]
    assert table is not None
    assert table.shape == (2, grid[0] * grid[1] * grid[2], 12)
    last = (grid[0] - 1, grid[1] - 1, grid[2] - 1)
    # The first frequency of each axis is 1 per step of the grid.
    assert table[1, -1, [0, 4, 8]].tolist() == pytest.approx(
        [float(torch.tensor(float(n)).sin()) for n in last]
    )
    with torch.no_grad():
        assert bool(net(image(size=size)).isfinite().all())


def test_the_table_is_not_stored() -> None:
    assert not [name for name in tiny().state_dict() if "rotary" in name]


def test_a_patch_is_decoded_from_its_own_token() -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(1, 3, 24, feature_size=4, patch_size=(8, 8, 4)).eval()
    final = torch.randn(1, 24, 3, 2, 2)
    other = final.clone()
    other[0, :, 1, 0, 1] += torch.randn(24)
    with torch.no_grad():
        x = torch.zeros(1, 1, 24, 16, 8)
        changed = (decoder(x, [], final) - decoder(x, [], other)).abs().amax(dim=(0, 1)) > 0
        alone = decoder(x, [], final[:, :, 1:2, :1, 1:])
        assert torch.allclose(decoder(x, [], final)[..., 8:16, :8, 4:], alone, atol=1e-6)
    inside = torch.zeros_like(changed)
    inside[8:16, :8, 4:8] = True
    assert not bool((changed & ~inside).any())
    assert float(changed[inside].double().mean()) > 0.99


def test_widths_fall_by_one_factor_to_twice_the_classes() -> None:
    # (396 / 28) ** (1/3) = 2.4184: 396, 163.7, 67.7, to multiples of 8.
    assert ladder_widths(396, 14, 3) == [396, 160, 64]
    assert ladder_widths(24, 14, 3) == [24, 24, 24]
    assert ladder_widths(396, 14, 1) == [396]


def test_deep_supervision_gives_the_steps_between() -> None:
    net = tiny(deep_supervision=2).train()
    found = net(image())
    assert [one.shape for one in found] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8), (2, 3, 4, 4, 4)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pruning_stages": ()},
        {"pruning_stages": (0,), "scoring": "image", "assembly_depth": 0},
        {"class_token": True, "scoring": "class_attention", "pruned_tokens": "fuse", "completion": "nearest"},
        {"completion": "mask_token", "scoring": "gates"},
    ],
)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    net = tiny(**options).train()
    loss = F.softplus(net(image())).mean()
    loss.backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    # Standardised scores do not change with a common offset.
    assert [name for name in idle if not name.endswith("predictor.out_mlp.4.bias")] == []


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads whose width is a multiple of 6 .*got 8"):
        build_segmenter("test_tiny", **EVA, num_heads=3)
    with pytest.raises(ConfigError, match="merging needs block: vit"):
        build_segmenter("test_tiny", **{**EVA, "pruning_stages": (), "merging": "tome", "keep_ratio": 0.75})
    with pytest.raises(ConfigError, match=r"has 1 levels at patch size .*deep_supervision 2"):
        build_segmenter("test_tiny", **EVA, patch_size=2, deep_supervision=2)


def test_the_preset_has_the_published_sizes() -> None:
    with torch.device("meta"):
        net = build_segmenter("primus_s_p8")
    config = net.config
    assert isinstance(config, SegmenterConfig)
    assert (config.embed_dim, config.depth, config.num_heads, config.patch_size) == (396, 12, 6, (8, 8, 8))
    assert config.block == "eva"
    hidden = {
        part.in_features
        for name, part in net.named_modules()
        if name.endswith("fc2") and isinstance(part, nn.Linear)
    }
    assert hidden == {1056}
