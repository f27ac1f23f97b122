"""Masked autoencoder: what the encoder sees, what is predicted, and how the error is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.config import parse_config
from sparseg.errors import ConfigError, ShapeError
from sparseg.models.autoencoder import (
    AutoencoderConfig,
    MaskedAutoencoder,
    masked_error,
    normalize_patches,
    patchify,
    random_mask,
    unpatchify,
)
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.models.segmenter import SparseUNETR

ROI = (16, 12, 8)
PATCH = (4, 4, 2)
LENGTH = 4 * 3 * 4


def network(*, settings: dict[str, Any] | None = None, **changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {**preset("test_tiny"), "roi_size": ROI, "patch_size": PATCH, "in_channels": 2, **changes}
    return MaskedAutoencoder(SegmenterConfig(**sizes), AutoencoderConfig(**(settings or {})))


def image(batch: int = 2, size: tuple[int, int, int] = ROI, seed: int = 1) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_patches_are_the_cubes_of_the_image() -> None:
    x = image()
    patches = patchify(x, PATCH)
    assert patches.shape == (2, LENGTH, 4 * 4 * 2 * 2)
    for i in range(4):
        for j in range(3):
            for k in range(4):
                cube = x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 2 * k : 2 * k + 2]
                expected = cube.permute(0, 2, 3, 4, 1).reshape(2, -1)
                assert torch.equal(patches[:, (i * 3 + j) * 4 + k], expected)
    assert torch.equal(unpatchify(patches, (4, 3, 4), PATCH), x)


def test_patches_are_in_the_order_of_the_encoders_tokens() -> None:
    net = network()
    x = image()
    weight = net.encoder.patch_embed.proj.weight.permute(0, 2, 3, 4, 1).reshape(24, -1)
    expected = patchify(x, PATCH) @ weight.T + net.encoder.patch_embed.proj.bias
    torch.testing.assert_close(net.encoder.patch_embed(x), expected)


@pytest.mark.parametrize(("ratio", "num_visible"), [(0.75, 12), (0.9, 5), (0.99, 1), (0.001, 47)])
def test_a_mask_hides_its_share_and_always_leaves_both_kinds(ratio: float, num_visible: int) -> None:
    visible, mask = random_mask(3, LENGTH, ratio, seeded())
    assert visible.shape == (3, num_visible)
    assert (~mask).sum(dim=1).tolist() == [num_visible] * 3
    for row, hidden in zip(visible, mask, strict=True):
        assert row.tolist() == (~hidden).nonzero()[:, 0].tolist()


def test_masks_are_seeded_differ_between_samples_and_treat_patches_alike() -> None:
    first = random_mask(2, LENGTH, 0.75, seeded(1))[1]
    assert torch.equal(first, random_mask(2, LENGTH, 0.75, seeded(1))[1])
    assert not torch.equal(first, random_mask(2, LENGTH, 0.75, seeded(2))[1])
    assert not torch.equal(first[0], first[1])
    many = random_mask(4000, LENGTH, 0.75, seeded())[1].float().mean(dim=0)
    assert (many - 0.75).abs().max() < 0.03


def test_one_patch_cannot_be_masked() -> None:
    with pytest.raises(ShapeError, match=r"at least two patches.*received 1; raise model\.roi_size"):
        random_mask(1, 1, 0.75)


@pytest.mark.parametrize("class_token", [True, False])
def test_only_visible_patches_enter_the_encoder(class_token: bool) -> None:
    net = network(class_token=class_token)
    lengths: list[int] = []
    for block in net.encoder.blocks:
        block.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    output = net(image(), seeded())
    assert lengths == [12 + class_token] * 4
    assert output.prediction.shape == (2, LENGTH, 64)


def test_pixels_of_hidden_patches_change_neither_encoding_nor_prediction() -> None:
    net = network().eval()
    x = image()
    visible, mask = random_mask(2, LENGTH, 0.75, seeded())
    noise = patchify(image(seed=9), PATCH)
    changed = torch.where(mask.unsqueeze(2), noise, patchify(x, PATCH))
    other = unpatchify(changed, (4, 3, 4), PATCH)
    with torch.no_grad():
        assert torch.equal(net.encode(x, visible), net.encode(other, visible))
        one, two = net(x, seeded()), net(other, seeded())
    assert torch.equal(one.mask, mask)
    assert torch.equal(one.prediction, two.prediction)
    assert not torch.equal(one.loss, two.loss)
    seen = torch.where(mask.unsqueeze(2), patchify(x, PATCH), noise)
    with torch.no_grad():
        assert not torch.equal(net(unpatchify(seen, (4, 3, 4), PATCH), seeded()).prediction, one.prediction)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("size", [ROI, (8, 12, 12)])
def test_with_all_patches_visible_it_is_the_dense_encoder(
    class_token: bool, size: tuple[int, int, int]
) -> None:
    net = network(class_token=class_token).eval()
    x = image(size=size)
    length = patchify(x, PATCH).shape[1]
    with torch.no_grad():
        encoded = net.encode(x, torch.arange(length).expand(2, -1))
        survivors, token = net.encoder.normed_survivors(net.encoder(x))
    expected = survivors.tokens if token is None else torch.cat((token, survivors.tokens), dim=1)
    torch.testing.assert_close(encoded, expected)


def test_encoder_names_and_shapes_are_those_of_the_segmenter() -> None:
    for name in ("test_tiny", "vit_tiny_p8"):
        config = SegmenterConfig(**preset(name))
        ours = MaskedAutoencoder(config).encoder.state_dict()
        theirs = SparseUNETR(**preset(name)).encoder.state_dict()
        wanted = {key: value.shape for key, value in theirs.items() if not key.startswith("prunings.")}
        assert {key: value.shape for key, value in ours.items()} == wanted


def slow_loss(net: MaskedAutoencoder, x: Tensor, prediction: Tensor, mask: Tensor) -> float:
    """The loss written with loops over samples and patches."""
    total, count = 0.0, 0
    for b in range(x.shape[0]):
        for number in range(LENGTH):
            if net.settings.loss_on == "masked" and not mask[b, number]:
                continue
            i, j, k = number // 12, number // 4 % 3, number % 4
            cube = x[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 2 * k : 2 * k + 2].double()
            if net.settings.target == "normalized":
                cube = (cube - cube.mean()) / (cube.var(correction=0) + 1e-6).sqrt()
            predicted = prediction[b, number].double().reshape(4, 4, 2, 2).permute(3, 0, 1, 2)
            total += float(((cube - predicted) ** 2).mean())
            count += 1
    return total / count


@pytest.mark.parametrize("target", ["pixels", "normalized"])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_loss_is_that_of_a_slow_reference(target: str, loss_on: str) -> None:
    net = network(settings={"target": target, "loss_on": loss_on})
    x = 3 * image() + 1
    with torch.no_grad():
        output = net(x, seeded())
    assert float(output.loss) == pytest.approx(slow_loss(net, x, output.prediction, output.mask), rel=1e-5)


def test_a_constant_patch_has_a_finite_target() -> None:
    patches, mean, deviation = normalize_patches(torch.full((1, 2, 8), -1.0))
    assert torch.equal(patches, torch.zeros(1, 2, 8))
    assert (mean == -1).all()
    torch.testing.assert_close(deviation, torch.full((1, 2, 1), 1e-3))
    assert float(masked_error(patches, patches + 2, torch.tensor([[True, False]]))) == 4.0


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_reconstruction_keeps_what_was_seen_and_a_perfect_prediction_gives_the_image(target: str) -> None:
    net = network(settings={"target": target})
    x = image()
    with torch.no_grad():
        output = net(x, seeded())
        rebuilt = net.reconstruct(x, output)
    seen = ~output.mask
    assert torch.equal(patchify(rebuilt, PATCH)[seen], patchify(x, PATCH)[seen])
    assert not torch.equal(rebuilt, x)
    truth = patchify(x, PATCH)
    perfect = normalize_patches(truth)[0] if target == "normalized" else truth
    torch.testing.assert_close(net.reconstruct(x, output._replace(prediction=perfect)), x)


@pytest.mark.parametrize("class_token", [True, False])
def test_every_parameter_receives_a_gradient(class_token: bool) -> None:
    net = network(class_token=class_token)
    net(image(), seeded()).loss.backward()
    without = [
        name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)
    ]
    assert without == []


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_learns_one_image_by_heart(target: str) -> None:
    net = network(settings={"target": target, "decoder_depth": 2, "decoder_dim": 48})
    axes = torch.meshgrid(*(torch.linspace(0, 3, edge) for edge in ROI), indexing="ij")
    x = torch.stack([torch.sin(axes[0] + axes[1]), torch.cos(axes[2] * 2)])[None]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = net(x, seeded()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_decoder_sizes_follow_the_encoder() -> None:
    assert AutoencoderConfig().decoder_sizes(768) == (384, 12)
    assert AutoencoderConfig().decoder_sizes(192) == (96, 3)
    assert AutoencoderConfig(decoder_dim=384, decoder_num_heads=8).decoder_sizes(192) == (384, 8)


def test_wrong_settings_and_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of the number of heads 5"):
        parse_config(AutoencoderConfig, {"decoder_dim": 12, "decoder_num_heads": 5})
    with pytest.raises(ConfigError, match="mask_ratio"):
        parse_config(AutoencoderConfig, {"mask_ratio": 1.0})
    with pytest.raises(ShapeError, match=r"takes \[B, 2, H, W, D\].*received \(1, 1, 16, 12, 8\)"):
        network()(torch.zeros(1, 1, *ROI))
    with pytest.raises(ShapeError, match="multiple of the patch edge"):
        network()(torch.zeros(1, 2, 15, 12, 8))
