"""Reusing a pre-trained encoder: the weights that fit, the position table on a new grid, and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sparseg.checkpoints.adapters_common import Renamed, listing, refuse, wrong_shapes
from sparseg.errors import CheckpointError
from sparseg.layers.position import resize_position
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple

_POSITION = "encoder.pos_embed"
_CLASS_TOKEN = "encoder.cls_token"
_PATCH_EMBED = ("encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias")


@dataclass(frozen=True)
class AdapterReport:
    """What became of the weights of a foreign encoder.

    Attributes:
        matched: Foreign keys taken as they are.
        resized: Foreign keys taken after resizing, each with both grids.
        dropped: Foreign keys left out, with the reason.
        kept: Encoder parameters that nothing in the checkpoint fills, with what they hold now.
    """

    matched: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"matched {len(self.matched)} parameters"]
        lines += [f"resized {name}" for name in self.resized]
        for verb, pairs in (("dropped", self.dropped), ("kept", self.kept)):
            for why in dict.fromkeys(why for _, why in pairs):
                names = [name for name, other in pairs if other == why]
                lines.append(f"{verb} {len(names)} ({why}): {listing(names, 3)}")
        return "\n".join(lines)


def load_encoder(
    net: SparseUNETR,
    renamed: Renamed,
    *,
    source_grid: Triple | None,
    where: str,
    may_lack_class_token: bool = False,
    may_lack_qkv_bias: bool = False,
) -> AdapterReport:
    """Fill the encoder of `net` and leave all else as it is; nothing changes when an error is raised.

    Args:
        net: Network to fill, in place.
        renamed: Foreign encoder under our names, its position table without a class-token row.
        source_grid: Token grid of that table, see `fit_position`.
        where: Kind of checkpoint, for messages.
        may_lack_class_token: Keep the network's class token where the checkpoint has none.
        may_lack_qkv_bias: Zero the attention biases where the checkpoint has none; the function is the same.

    Raises:
        CheckpointError: entries unknown, missing, or of another width or depth.
    """
    target = {f"encoder.{key}": value for key, value in net.encoder.state_dict().items()}
    unusable = _unusable(renamed.found, target)
    found = {key: value for key, value in renamed.found.items() if key not in unusable}
    kept = {key: "left as it was, the checkpoint's does not fit" for key in unusable if key in target}
    kept |= {key: "left as it was, belongs to token pruning" for key in target if ".prunings." in key}
    if may_lack_class_token and _CLASS_TOKEN in target and _CLASS_TOKEN not in found:
        kept[_CLASS_TOKEN] = "left as it was, the checkpoint has none"
    biases = [key for key in target if key.endswith(".attn.qkv.bias")]
    if may_lack_qkv_bias and not any(key in found for key in biases):
        kept |= dict.fromkeys(biases, "set to zero, the checkpoint has none")
        found_biases = {key: torch.zeros_like(target[key]) for key in biases}
    else:
        found_biases = {}
    table = _check_encoder(Renamed(found, renamed.origin, (), renamed.unknown), target, kept, where)
    name = renamed.origin[_POSITION]
    fitted, note = fit_position(table, net, name=name, source_grid=source_grid)
    filled = {**target, **found_biases, **found, _POSITION: fitted}
    net.encoder.load_state_dict({key.removeprefix("encoder."): value for key, value in filled.items()})
    return AdapterReport(
        matched=tuple(renamed.origin[key] for key in found if key != _POSITION or note is None),
        resized=() if note is None else (note,),
        dropped=(*renamed.dropped, *((renamed.origin[key], why) for key, why in unusable.items())),
        kept=tuple(kept.items()),
    )


def fit_position(
    table: Tensor, net: SparseUNETR, *, name: str, source_grid: Triple | None
) -> tuple[Tensor, str | None]:
    """Bring a position table without class-token row to the network's grid; a class token gets a zero row.

    Args:
        table: `[1, L', E]`.
        net: Network to fill.
        name: Foreign name of the table.
        source_grid: Grid of the table; None where it is the network's own, or a cube.

    Returns:
        The table for `net.encoder.pos_embed`, and a note where it was resized.

    Raises:
        CheckpointError: the grid is not given and cannot be told from the length, or does not fit the length.
    """
    grid = net.config.grid
    length = table.shape[1]
    if source_grid is None:
        edge = round(length ** (1 / 3))
        source_grid = grid if length == prod(grid) else (edge, edge, edge)
    if prod(source_grid) != length:
        raise CheckpointError(
            "the token grid of the position table must be known",
            received=f"{length} rows, grid {source_grid}",
            remedy="give source_grid, the roi of the pre-training divided by its patch size",
            where=name,
        )
    fitted = resize_position(table, source_grid, grid)
    note = None if source_grid == grid else f"{name}: grid {source_grid} -> {grid}"
    if net.config.class_token:
        fitted = torch.cat((fitted.new_zeros(1, 1, fitted.shape[2]), fitted), dim=1)
    return fitted, note


def _unusable(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, str]:
    """Entries that a network of other inputs cannot take, with the reason; another *width* is an error."""
    result: dict[str, str] = {}
    weight = _PATCH_EMBED[0]
    if weight in found and found[weight].shape[1:] != target[weight].shape[1:]:
        shapes = f"{tuple(found[weight].shape[1:])} against {tuple(target[weight].shape[1:])}"
        why = f"channels or patch size differ: {shapes}"
        result |= {key: why for key in _PATCH_EMBED if key in found}
    if _CLASS_TOKEN in found and _CLASS_TOKEN not in target:
        result[_CLASS_TOKEN] = "the network has no class token"
    return result


def _check_encoder(
    renamed: Renamed, target: Mapping[str, Tensor], kept: Mapping[str, str], where: str
) -> Tensor:
    """Refuse what does not fit; return the position table, whose length alone may differ."""
    found = dict(renamed.found)
    table = found.pop(_POSITION, None)
    position = target[_POSITION]
    shapes = wrong_shapes(Renamed(found, renamed.origin, (), ()), target)
    if table is not None and (table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != position.shape[2]):
        shapes.append(
            f"{renamed.origin[_POSITION]} {tuple(table.shape)} instead of (1, L, {position.shape[2]})"
        )
    refuse(
        where,
        missing=[key for key in target if key not in renamed.found and key not in kept],
        unknown=[*renamed.unknown, *(renamed.origin[key] for key in found if key not in target)],
        shapes=shapes,
    )
    assert table is not None  # a missing table was refused above
    return table
