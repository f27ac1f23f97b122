"""Peers as rows of the model benchmark."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparseg.benchmark import model
from sparseg.benchmark.macs import count_macs
from sparseg.benchmark.variants import GROUPS, VARIANTS, bench_config, build_variant, choose_variants
from sparseg.errors import ConfigError
from sparseg.models.peers import PeerNet

FIT = ["peer_unetr16_tiny", "peer_segresnet_tiny", "peer_dynunet_tiny"]


def test_a_word_stands_for_all_peers_that_fit_the_window() -> None:
    chosen, left_out = choose_variants(bench_config("test_tiny"), ["sparse", "peers_tiny"])
    assert chosen == ["sparse", *FIT]
    assert "multiples of 32" in left_out["peer_swin_unetr_tiny"]
    assert "above 16 along one axis" in left_out["peer_mednext_tiny"]
    assert [name for name, why in left_out.items() if why == "not asked for"] == list(VARIANTS[1:])
    chosen, left_out = choose_variants(bench_config("btcv"), ["peers"])
    assert chosen == list(GROUPS["peers"])
    assert len(chosen) == 5


def test_peers_take_window_channels_and_classes_of_the_preset() -> None:
    config = bench_config("test_tiny").model_copy(update={"in_channels": 2, "num_classes": 5})
    net = build_variant("peer_dynunet_tiny", config).net
    assert isinstance(net, PeerNet)
    assert (net.config.in_channels, net.config.num_classes, net.config.roi_size) == (2, 5, (16, 16, 16))
    first = next(build_variant("peer_dynunet_tiny", config, seed=0).net.parameters())
    assert torch.equal(first, next(build_variant("peer_dynunet_tiny", config, seed=0).net.parameters()))


def test_macs_are_those_counted_on_real_tensors() -> None:
    config = bench_config("test_tiny")
    total, parts = count_macs("peer_dynunet_tiny", config)
    net = build_variant("peer_dynunet_tiny", config).net.eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 16, 16, 16))
    assert parts == {"network": total}
    assert total == counter.get_total_flops() // 2
    # First block, two 3³ convolutions of width 1 -> 8 -> 8; the last layer gives 3 classes.
    assert total > 16**3 * (27 * 8 + 27 * 64 + 24)
    assert list(count_macs("peer_unetr16_tiny", config)[1]) == ["encoder", "assembly", "decoder"]


def test_rows_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "measure_peak_memory", lambda *_, **__: 2**30)
    names = ["sparse", "peer_unetr16_tiny", "peer_dynunet_tiny"]
    result = model.bench_model("test_tiny", pairs=1, warmup=0, threads=1, variants=names)
    rows = {(row["variant"], row["mode"]): row for row in result["rows"]}
    assert list(rows) == [(name, mode) for mode in ("inference", "training") for name in names]
    conv, vit = rows["peer_dynunet_tiny", "training"], rows["peer_unetr16_tiny", "inference"]
    assert list(conv["parts"]) == ["network", "loss", "backward", "optimizer"]
    assert sum(conv["parts"].values()) == pytest.approx(conv["seconds"])
    assert (conv["patch_size"], conv["token_counts"]) == (None, [])
    assert list(vit["parts"]) == ["encoder", "assembly", "decoder"]
    assert (vit["patch_size"], vit["token_counts"]) == ((16, 16, 16), [1])
    assert [cells[0] for cells in model.table_rows(result)[1:4]] == names


def test_the_refusal_names_groups_and_peers() -> None:
    with pytest.raises(ConfigError, match=r"peers, peers_tiny, published.*peer_unetr16.*received swin"):
        choose_variants(bench_config("test_tiny"), ["swin"])
