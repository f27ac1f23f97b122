"""Activation checkpointing: the same numbers from less memory. Deep supervision: outputs in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter, segmenter_from_config
from sparseg.models.segmenter import SparseUNETR
from sparseg.tokens.stages import Selection


def tiny(seed: int = 0, **options: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", **options)


def image(seed: int = 1) -> Tensor:
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def step(net: SparseUNETR, selection: Selection | None = None) -> tuple[Tensor, list[Tensor], int]:
    """Loss, gradients and bytes held for the backward pass, parameters not counted."""
    owned = {parameter.data_ptr() for parameter in net.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            held[storage.data_ptr()] = storage
        return tensor

    net.zero_grad()
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = net(image(), selection=selection)
        loss = sum(F.softplus(one).mean() for one in (logits if isinstance(logits, list) else [logits]))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    num_bytes = sum(storage.nbytes() for storage in held.values())
    return loss.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None], num_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"drop_path": 0.5, "noise_scale": 1.0},
        {"pruning_stages": (), "drop_path": 0.5},
        {"class_token": False, "skips": "shared", "deep_supervision": 2},
        {"patch_size": (8, 8, 4), "assembly_depth": 2},
    ],
)
def test_recomputed_activations_change_no_bit_and_need_less_memory(options: dict[str, Any]) -> None:
    net = tiny(2, **options).train()
    plain = step(net)
    net.set_activation_checkpointing(True)
    recomputed = step(net)
    assert torch.equal(plain[0], recomputed[0])
    for a, b in zip(plain[1], recomputed[1], strict=True):
        assert torch.equal(a, b)
    assert recomputed[2] < 0.6 * plain[2]
    net.set_activation_checkpointing(False)
    assert step(net)[2] == plain[2]


def test_recomputation_is_no_setting_and_changes_no_evaluation() -> None:
    net = tiny(3).eval()
    expected = net(image())
    names = list(net.state_dict())
    net.set_activation_checkpointing(True)
    assert torch.equal(net(image()), expected)
    assert list(net.state_dict()) == names
    assert segmenter_from_config(net.config).encoder.recompute is False


def test_deep_supervision_adds_outputs_in_training_only() -> None:
    net = tiny(4, deep_supervision=2)
    plain = tiny(4)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "deep_outs" not in k})
    extra = set(net.state_dict()) - set(plain.state_dict())
    assert extra == {f"decoder.deep_outs.{i}.conv.conv.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    outputs = net.train()(image())
    assert [tuple(one.shape) for one in outputs] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8), (2, 3, 4, 4, 4)]
    assert torch.equal(outputs[0], plain.train()(image()))
    assert torch.equal(net.eval()(image()), plain.eval()(image()))
    assert len(tiny(deep_supervision=1).train()(image())) == 2


def test_deep_outputs_are_1x1x1_convolutions_of_their_decoder_level() -> None:
    net = tiny(5, deep_supervision=2).train()
    levels: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, features: levels.append(features))
        for block in net.decoder.up_blocks
    ]
    outputs = net(image(), return_selection=True).logits
    for hook in hooks:
        hook.remove()
    for number, name in ((1, "0"), (2, "1")):
        conv = dict(net.decoder.deep_outs.named_children())[name].conv.conv
        rows = torch.einsum("bchwd,kc->bkhwd", levels[-1 - number], conv.weight[:, :, 0, 0, 0])
        assert (outputs[number] - rows - conv.bias[:, None, None, None]).abs().max() <= 1e-5


def test_more_heads_than_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"deep_supervision: .*less than or equal to 2; received 3"):
        tiny(deep_supervision=3)
