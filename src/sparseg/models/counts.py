"""How many patch tokens are present where: exact numbers, known before anything runs."""

from __future__ import annotations

from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig
from sparseg.shapes import num_tokens
from sparseg.tokens.select import num_keep


def token_counts(
    config: SegmenterConfig, length: int, keep_ratios: tuple[float, ...] | None = None
) -> list[int]:
    """Patch tokens present from the start and after each pruning stage; with merging, after each block.

    Args:
        config: Settings.
        length: L.
        keep_ratios: One per stage in place of the model's ratios or counts.

    Raises:
        ConfigError: an absolute count that the tokens present do not allow, or not one ratio per stage.
    """
    if keep_ratios is not None and len(keep_ratios) != len(config.pruning_stages):
        raise ConfigError(
            f"a selection must have one keep ratio per pruning stage ({len(config.pruning_stages)})",
            received=keep_ratios,
            remedy="give as many, or None for those of the model",
            where="selection.keep_ratios",
        )
    if config.merging != "none":
        return _merging_counts(config, length)
    counts = [length]
    for stage, ratio in enumerate(keep_ratios or config.keep_ratios):
        if config.num_keep is None or keep_ratios is not None:
            count = num_keep(counts[-1], ratio, config.count_rule)
        else:
            count = config.num_keep[stage]
        if count > counts[-1]:
            raise ConfigError(
                f"stage {stage} can keep at most the {counts[-1]} tokens that reach it",
                received=count,
                remedy="lower num_keep or use keep_ratio",
                where="num_keep",
            )
        counts.append(count)
    return counts


def require_tokens(config: SegmenterConfig, keep_ratios: tuple[float, ...] | None = None) -> None:
    """Refuse stages that could not run on a window of the model's size.

    Args:
        config: Settings.
        keep_ratios: One per stage in place of the model's ratios or counts.

    Raises:
        ConfigError: see `token_counts`; or no token left, by the published rule, where none can stand in.
    """
    counts = token_counts(config, num_tokens(config.grid), keep_ratios)
    shown = " > ".join(map(str, counts))
    needed = not config.class_token or config.completion == "nearest" or config.block == "eva"
    if needed and 0 in counts:
        raise ConfigError(
            "a token must be left after every pruning stage, unless there is a class token, block: vit, and "
            "a completion other than nearest",
            received=f"{shown} tokens with keep ratio {keep_ratios or config.keep_ratio}",
            remedy="raise it, or use count_rule: exact, which keeps at least one",
            where="keep_ratio",
        )


def _merging_counts(config: SegmenterConfig, length: int) -> list[int]:
    """After each block n - r with r given, else n times the keep ratio, as after a pruning stage."""
    counts = [length]
    for block in range(config.depth):
        n = counts[-1]
        if config.num_merge is None:
            # Checked with the settings to be one ratio of at least 0.5, so r is at most ceil(n/2).
            assert isinstance(config.keep_ratio, float)
            counts.append(num_keep(n, config.keep_ratio))
            continue
        if config.num_merge > n // 2:
            raise ConfigError(
                f"block {block} can merge at most half of the {n} tokens that reach it",
                received=config.num_merge,
                remedy="lower num_merge or use keep_ratio",
                where="num_merge",
            )
        counts.append(n - config.num_merge)
    return counts


def merge_ratio_like(config: SegmenterConfig) -> float:
    """The keep ratio per block at which merging costs what the pruning of `config` costs in the encoder.

    A block's attention sees the tokens before the merge and its MLP those after it; their products with
    weights take 4 E² and 2 E² mlp_ratio per token (products of tokens with tokens are left out).

    Args:
        config: Of a model with pruning stages.

    Returns:
        0.5 to 1, in steps of 0.001; the nearest where none fits.
    """
    counts, pruned, stage = token_counts(config, num_tokens(config.grid)), 0.0, 0
    for block in range(config.depth):
        stage += block in config.pruning_stages
        pruned += (4 + 2 * config.mlp_ratio) * counts[stage]

    def distance(thousandths: int) -> float:
        cost, n = 0.0, counts[0]
        for _ in range(config.depth):
            cost, n = cost + 4 * n, num_keep(n, thousandths / 1000)
            cost += 2 * config.mlp_ratio * n
        return abs(cost - pruned)

    return min(range(500, 1001), key=distance) / 1000
