"""Rows A1 to A4: no result on a bad number, no seams, no influence of the tiling, sparse equals dense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.errors import NumericsError
from sparseg.models.build import build_segmenter
from sparseg.windows.sliding import sliding_window

from .figures import Figure


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.hazard("A1", "results of non-finite logits")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a1_one_bad_logit_anywhere_refuses_the_volume(bad: float) -> None:
    calls = 0

    def network(windows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits = windows.clone()
        if calls == 5:
            logits[0, 0, 3, 2, 1] = bad
        return logits

    with pytest.raises(
        NumericsError, match=r"every logit must be finite; received NaN or infinity"
    ) as caught:
        sliding_window(torch.zeros(1, 16, 8, 8), network, (8, 4, 4))
    assert "(0, 2, 2)" in str(caught.value)  # the fifth window
    assert "\n" not in str(caught.value)


@pytest.mark.hazard("A1", "results of non-finite logits")
def test_a1_a_nan_weight_or_voxel_gives_no_result() -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny").eval()
    image = seeded(1, 1, 16, 16, 20)
    with torch.no_grad():
        sliding_window(image, net, (16, 16, 16))
        broken = image.clone()
        broken[0, 8, 8, 19] = float("nan")
        with pytest.raises(NumericsError):
            sliding_window(broken, net, (16, 16, 16))
        net.encoder.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
        with pytest.raises(NumericsError):
            sliding_window(image, net, (16, 16, 16))


@pytest.mark.parametrize("importance", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("size", [(32, 32, 32), (17, 31, 23), (16, 19, 9), (5, 7, 3)])
def test_a2_an_identity_network_survives_including_corners(
    figure: Figure, size: tuple[int, int, int], overlap: float, importance: str
) -> None:
    image = 100 + 10 * seeded(2, 3, *size)
    found = sliding_window(image, lambda x: x, (16, 12, 8), overlap=overlap, importance=importance)  # type: ignore[arg-type]
    assert found.shape == image.shape
    # Up to 216 windows lie over a voxel at overlap 0.8, and each float32 sum may round.
    limit = 1e-6 if overlap <= 0.5 else 1e-5
    error = float(((found - image) / image).abs().max())
    figure("A2", f"relative error, overlap {'up to 0.5' if overlap <= 0.5 else overlap}", error, limit=limit)
    assert error <= limit
    corners = torch.tensor([0, -1])
    found, image = (value[:, corners][:, :, corners][..., corners] for value in (found, image))
    assert ((found - image) / image).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a2_no_label_changes(figure: Figure, dtype: torch.dtype) -> None:
    logits = torch.randint(-8, 9, (4, 25, 18, 21), generator=torch.Generator().manual_seed(3)).float()
    found = sliding_window(logits, lambda x: x.to(dtype), (16, 12, 8))
    changed = int((found.argmax(0) != logits.argmax(0)).sum())
    figure("A2", f"labels changed, {str(dtype).removeprefix('torch.')}", changed, of=found[0].numel())
    assert changed == 0


@pytest.mark.hazard("A3", "label maps that differ")
@pytest.mark.parametrize("batch_size", [2, 3, 4, 64])
def test_a3_the_batch_size_changes_nothing(batch_size: int) -> None:
    torch.manual_seed(4)
    net, image = build_segmenter("test_tiny").eval(), seeded(5, 1, 24, 20, 16)
    with torch.inference_mode():
        one = sliding_window(image, net, (16, 16, 16), batch_size=1)
        many = sliding_window(image, net, (16, 16, 16), batch_size=batch_size)
    assert (one - many).abs().max() <= 1e-5
    assert torch.equal(one.argmax(0), many.argmax(0))


@pytest.mark.hazard("A3", "label maps that differ")
def test_a3_threads_change_nothing() -> None:
    torch.manual_seed(6)
    net, image = build_segmenter("test_tiny").eval(), seeded(7, 1, 17, 16, 16)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(sliding_window(image, net, (16, 16, 16)))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(results[0].argmax(0), results[1].argmax(0))


def test_a4_keeping_every_token_equals_the_dense_path(figure: Figure) -> None:
    torch.manual_seed(8)
    sparse = build_segmenter("test_tiny", keep_ratio=1.0).eval()
    dense = build_segmenter("test_tiny", pruning_stages=()).eval()
    wanted = dense.state_dict()
    dense.load_state_dict({k: v for k, v in sparse.state_dict().items() if k in wanted})
    # Completion has no counterpart in the dense model; all else must agree, through the decoder.
    sparse.assembler = None
    image = seeded(9, 2, 1, 16, 16, 16)
    with torch.no_grad():
        difference = float((sparse(image) - dense(image)).abs().max())
    figure("A4", "largest difference of the logits", difference, limit=1e-5)
    assert difference <= 1e-5
