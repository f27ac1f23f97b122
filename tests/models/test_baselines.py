"""Every rival in the network: identities, gradients, storage, and what it costs."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.benchmark.macs import count_macs
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import load_model, save_model
from sparseg.config import parse_config
from sparseg.errors import ConfigError
from sparseg.models.baselines import BASELINES, baseline_options
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig
from sparseg.models.counts import merge_ratio_like
from sparseg.models.presets import preset
from sparseg.models.segmenter import SparseUNETR
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT
from sparseg.tokens.stages import Selection
from sparseg.training.losses import make_loss
from sparseg.training.selection import ratio_loss

PRUNING = [name for name in BASELINES if not name.startswith(("dense", "tome"))]
E = 24


def options_of(name: str, **changes: Any) -> dict[str, Any]:
    # One token has nobody to attend to, so patch 16 needs a larger window.
    window = {"roi_size": (32, 16, 16)} if name == "dense_p16" else {}
    return {"feature_size": 2, **window, **baseline_options(name)["model"], **changes}


def tiny(name: str, seed: int = 0, **changes: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", **options_of(name, **changes))


def image_for(net: SparseUNETR, batch: int = 2, seed: int = 1, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, *net.config.roi_size, generator=generator, **options)


def config_of(name: str, **changes: Any) -> SegmenterConfig:
    return parse_config(
        SegmenterConfig, {**preset("test_tiny"), **baseline_options(name)["model"], **changes}
    )


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    net = tiny(name).double().train()
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, 3, (2, 1, *net.config.roi_size), generator=generator)
    logits, _, decisions = net(image_for(net, dtype=torch.float64), return_selection=True)
    loss = make_loss(regions=False)(logits, label)
    if baseline_options(name)["selection"].get("ratio_weight"):
        loss = loss + ratio_loss(decisions)
    loss.backward()
    silent = set()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if float(parameter.grad.abs().max()) <= 1e-12:
            silent.add(key)
    # A shift of all standardised scores is nothing; log-sigmoid ones at this size nearly so.
    endings = ("out_mlp.4.bias", "predictor.out.bias")
    last = {key for key, _ in net.named_parameters() if ".predictor." in key and key.endswith(endings)}
    if net.config.scoring in ("predictor", "image") and name != "published":
        assert silent == last
    elif name != "published":
        assert silent == set()


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_is_its_cases_one_by_one_and_nothing_is_lost(name: str) -> None:
    net = tiny(name).eval()
    images = image_for(net, 3)
    with torch.no_grad():
        batch = net(images, return_stages=True)
        single = [net(image[None], return_stages=True) for image in images]
    assert (batch.logits - torch.cat([one.logits for one in single])).abs().max() <= 1e-5
    together = torch.cat([stage.indices for stage in batch.stages], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(together.shape[1]).expand(3, -1))
    assert together.shape[1] == net.token_counts()[0]
    if name in PRUNING:
        counts = net.token_counts()
        sizes = [before - after for before, after in pairwise(counts)] + [counts[-1]]
        assert [stage.indices.shape[1] for stage in batch.stages] == sizes


@pytest.mark.parametrize("name", [*PRUNING, "tome"])
def test_keep_ratio_one_is_the_dense_encoder(name: str) -> None:
    sparse = tiny(name, keep_ratio=1.0, num_keep=None).eval()
    dense = tiny("dense_p8", patch_size=4).eval()
    wanted = dense.encoder.state_dict()
    dense.encoder.load_state_dict({k: v for k, v in sparse.encoder.state_dict().items() if k in wanted})
    image = image_for(sparse)
    with torch.no_grad():
        found, expected = sparse.encoder(image), dense.encoder(image)
    assert (found.stages[-1].tokens - expected.stages[-1].tokens).abs().max() <= 2e-6
    for a, b in zip(found.skips, expected.skips, strict=False):
        assert (a - b).abs().max() <= 2e-6


@pytest.mark.parametrize("name", BASELINES)
def test_stored_and_loaded(name: str, tmp_path: Path) -> None:
    net = tiny(name).eval()
    labels = {0: "background", 1: "liver", 2: "tumor"}
    card = ModelCard(model=net.config, preprocess=PAPER_ABDOMEN_CT, channels=("CT",), labels=labels)
    save_model(tmp_path / "model", net, card)
    again, image = load_model(tmp_path / "model"), image_for(net)
    assert again.config == net.config
    with torch.no_grad():
        assert torch.equal(net(image), again(image))


@pytest.mark.parametrize("name", ["evit_mask", "dynamicvit", "tome"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    found = []
    for recompute in (False, True):
        net = tiny(name, drop_path=0.1).train()
        net.set_activation_checkpointing(recompute)
        torch.manual_seed(3)
        net(image_for(net)).square().mean().backward()
        found.append([parameter.grad for parameter in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert torch.equal(a, b)


def inputs_of_blocks(net: SparseUNETR, image: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for block in net.encoder.blocks
    ]
    with torch.no_grad():
        net(image)
    for handle in handles:
        handle.remove()
    return seen


def test_evit_keeps_what_the_class_token_attends_to_and_fuses_the_rest() -> None:
    net = tiny("evit_mask").double().eval()
    with torch.no_grad():
        net.encoder.cls_token.mul_(50)
    image = image_for(net, 1, dtype=torch.float64)
    seen = inputs_of_blocks(net, image)
    assert [x.shape[1] for x in seen] == [65, 1 + 32 + 1, 1 + 16 + 1, 1 + 8 + 1]
    block = net.encoder.blocks[0]
    q, k, _ = block.attn.split_heads(block.attn.qkv(block.norm1(seen[0])))
    full = (q @ k.transpose(2, 3) / 12**0.5).softmax(dim=-1).mean(dim=1)[0, 0, 1:]
    after = block(seen[0])[0, 1:]
    best = full.argsort(descending=True)[:32].sort().values
    rest = torch.tensor(sorted(set(range(64)) - set(best.tolist())))
    assert (seen[1][0, 1:33] - after[best]).abs().max() <= 1e-12
    assert (seen[1][0, 33] - (full[rest, None] * after[rest]).sum(dim=0)).abs().max() <= 1e-12


def test_dynamicvit_trains_on_all_tokens_and_predicts_with_few() -> None:
    net = tiny("dynamicvit_mask")
    image = image_for(net)
    assert [x.shape[1] for x in inputs_of_blocks(net.train(), image)] == [65] * 4
    assert [x.shape[1] for x in inputs_of_blocks(net.eval(), image)] == [65, 33, 17, 9]


def test_masking_is_removal_where_both_decide_alike() -> None:
    """With all gates closed but for what evaluation keeps, training decides as evaluation does."""
    net = tiny("dynamicvit", pruning_stages=(2,), noise_scale=0.0)
    with torch.no_grad():
        net.encoder.prunings[0].predictor.out_mlp[4].bias.fill_(-10.0)  # all gates closed
    image = image_for(net)
    with torch.no_grad():
        removed = net.eval()(image, return_stages=True)
        protected = torch.zeros(2, 64, dtype=torch.bool).scatter(1, removed.stages[-1].indices, value=True)
        masked = net.train()(image, selection=Selection(protected=protected))
    assert (masked - removed.logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["evit_mask", "mask_token", "nearest", "dynamicvit_mask"])
def test_skips_of_forgotten_tokens_follow_the_completion(name: str) -> None:
    net = tiny(name).eval()
    grid = net.config.grid
    with torch.no_grad():
        encoded = net.encoder(image_for(net), None, lambda groups: net.assembler.place_skip(groups, grid))
    last, survivors = encoded.skips[-1], encoded.stages[-1]
    rows = last.gather(1, survivors.indices.unsqueeze(-1).expand(-1, -1, E))
    assert torch.equal(rows, survivors.tokens)
    pruned = torch.cat([group.indices for group in encoded.stages[:-1]], dim=1)
    filled = last.gather(1, pruned.unsqueeze(-1).expand(-1, -1, E))
    if name == "nearest":
        assert all(
            (row[:, None] == one[None]).all(-1).any(-1).all() for row, one in zip(filled, rows, strict=True)
        )
    else:
        assert (filled == net.assembler.skip_mask_token).all()


@pytest.mark.parametrize("name", ["evit", "dynamicvit", "random"])
def test_stages_before_the_first_block(name: str) -> None:
    if name == "evit":
        with pytest.raises(ConfigError, match="class_attention needs a block before each pruning stage"):
            tiny(name, pruning_stages=(0, 2), keep_ratio=0.5)
        return
    net = tiny(name, pruning_stages=(0, 2), keep_ratio=0.5).eval()
    assert [x.shape[1] for x in inputs_of_blocks(net, image_for(net))] == [33, 33, 17, 17]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"pruned_tokens": "fuse"}, "fuse weighs by the attention of scoring class_attention, got predictor"),
        (
            {"pruned_tokens": "fuse", "scoring": "class_attention"},
            "completion must be one of mask_token, nearest, got assembly",
        ),
        ({"scoring": "class_attention", "class_token": False}, "needs class_token: true"),
        ({"merging": "tome"}, r"merging needs pruning_stages to be empty, got \(1, 2, 3\)"),
        ({"merging": "tome", "pruning_stages": (), "keep_ratio": 0.4}, "at least 0.5 .*got 0.4"),
        ({"num_merge": 3}, "num_merge needs merging: tome, got 3 without"),
        ({"scoring": "attention"}, "scoring: .*'predictor'"),
    ],
)
def test_ways_that_do_not_go_together(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^SparseUNETR: .*{rule}") as caught:
        build_segmenter("test_tiny", **options)
    assert "\n" not in str(caught.value)


def test_merging_counts_per_block() -> None:
    assert tiny("tome", keep_ratio=0.75).token_counts() == [64, 48, 36, 27, 20]
    constant = tiny("tome", num_merge=12)
    assert constant.token_counts() == [64, 52, 40, 28, 16]
    seen = inputs_of_blocks(constant.eval(), image_for(constant))
    assert [x.shape[1] for x in seen] == [65, 53, 41, 29]
    with pytest.raises(ConfigError, match=r"block 2 can merge at most half of the 24 tokens.*received 20"):
        tiny("tome", num_merge=20).token_counts()


def test_unknown_baseline_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"^baseline: .*one of sparse, published, .*received 'avit'"):
        baseline_options("avit")


def test_options_are_copies_and_overrule_the_ways_of_any_preset() -> None:
    baseline_options("edge")["selection"]["score_weight"] = 9
    assert baseline_options("edge")["selection"]["score_weight"] == 0.1
    for name in BASELINES:
        values = {**preset("btcv"), **baseline_options(name)["model"]}
        config = parse_config(SegmenterConfig, values)
        assert (config.count_rule == "published") is (name == "published")
        assert config.patch_size[0] == (16 if name == "dense_p16" else 8)


@pytest.mark.parametrize("base", ["vit_tiny_p8", "fast_tiny_p8", "btcv"])
def test_rows_stay_different_over_any_preset(base: str) -> None:
    """`first` and `linear` were one network over a `fast` preset, which has no completion block."""
    steps = ("sparse", "first", "linear", "fast")
    settings = [{**preset(base), **baseline_options(name)["model"]} for name in steps]
    made = [parse_config(SegmenterConfig, values) for values in settings]
    assert all(one != other for one, other in combinations(made, 2))
    assert [config.assembly_depth for config in made] == [1, 1, 0, 0]


def block_macs(before: int, after: int) -> int:
    """One block whose attention sees `before` tokens and whose MLP sees `after`."""
    return 4 * before * E * E + 2 * before * before * E + 8 * after * E * E


def predictor_macs(n: int) -> int:
    return n * (E * E + E * E // 2 + E // 2 * E // 4 + E // 4)


def test_macs_by_hand() -> None:
    embed = 64 * 64 * E
    blocks = sum(block_macs(n, n) for n in (65, 33, 17, 9))
    scores = sum(predictor_macs(n) for n in (64, 32, 16))
    assembly = {
        "assembly": 65 * E * E + block_macs(65, 65) + 64 * E * E,
        "mask_token": 9 * E * E + block_macs(65, 65) + 64 * E * E,
        "last_layer": 64 * E * E,
        "nearest": 8 * E * E,
    }
    fused = sum(block_macs(n, n) for n in (65, 34, 18, 10))
    # One row of attention per stage, and a sum over the pruned tokens and the one fused before.
    rows = (65 + 34 + 18) * E
    sums = (32 + 17 + 9) * E
    expected = {
        "random": (embed + blocks, assembly["assembly"]),
        "entropy": (embed + blocks, assembly["assembly"]),
        "evit": (embed + blocks + (65 + 33 + 17) * E, assembly["assembly"]),
        "evit_mask": (embed + fused + rows + sums, assembly["mask_token"]),
        "dynamicvit": (embed + blocks + scores, assembly["assembly"]),
        "mask_token": (embed + blocks + scores, assembly["mask_token"]),
        "last_layer": (embed + blocks + scores, assembly["last_layer"]),
        "nearest": (embed + blocks + scores, assembly["nearest"]),
    }
    for name, (encoder, completion) in expected.items():
        _, parts = count_macs("sparse", config_of(name))
        assert (parts["encoder"], parts["assembly"]) == (encoder, completion), name


def test_macs_of_merging_by_hand() -> None:
    _, parts = count_macs("sparse", config_of("tome", keep_ratio=0.75))
    counts = [64, 48, 36, 27, 20]
    macs = 64 * 64 * E
    for before, after in pairwise(counts):
        # Cosine of each token of A with each of B, over the width of one head (two heads).
        macs += block_macs(before + 1, after + 1) + (before - before // 2) * (before // 2) * E // 2
    assert (parts["encoder"], parts["assembly"]) == (macs, 0)


def test_masked_training_costs_what_dense_training_costs() -> None:
    dense = count_macs("sparse", config_of("dense_p8", patch_size=4), mode="training")[0]
    gates = count_macs("sparse", config_of("dynamicvit_mask"), mode="training")[0]
    mask = count_macs("sparse", config_of("mask_token"), mode="training")[0]
    assert mask < dense < gates


def test_merging_can_cost_what_pruning_costs() -> None:
    # Pruning: blocks of 64, 32, 16, 8 tokens at 12 each = 1440. Merging 64 -> 43 -> 29 -> 19 -> 12 at 0.675:
    # 4 (64 + 43 + 29 + 19) + 8 (43 + 29 + 19 + 12) = 1444; at 0.674 it is 1420.
    config = config_of("sparse")
    assert merge_ratio_like(config) == 0.675
    assert baseline_options("tome", config)["model"]["keep_ratio"] == 0.675
    assert tiny("tome", keep_ratio=0.675).token_counts() == [64, 43, 29, 19, 12]


def test_with_one_token_no_patch_learns_of_another() -> None:
    net = tiny("one_token").eval()
    image = image_for(net, batch=1)
    with torch.inference_mode():
        before = net.encoder(image)
        place = int(before.stages[0].indices[0, 0])
        grid, edge = net.config.grid, net.config.patch_size
        corner = torch.tensor(torch.unravel_index(torch.tensor(place), grid)) * torch.tensor(edge)
        box = tuple(slice(int(a), int(a) + e) for a, e in zip(corner, edge, strict=True))
        changed = image.clone()
        changed[(..., *box)] *= 0.9
        after = net.encoder(changed)
    assert net.token_counts()[1] == 1
    assert torch.equal(before.stages[1].indices, after.stages[1].indices)
    differs = (before.stages[0].tokens != after.stages[0].tokens).any(dim=2)[0]
    assert before.stages[0].indices[0, differs].tolist() == [place]
    assert torch.equal(before.stages[1].tokens, after.stages[1].tokens)
