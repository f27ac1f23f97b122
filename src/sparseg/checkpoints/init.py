"""Start a training from an encoder that has learnt before, ours or a foreign one: strict, with a report.

Only the encoder's blocks, embeddings and norm are taken. Score predictors, assembler and decoder of the
network stay as they are: they belong to the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparseg.checkpoints.adapters_common import Renamed, listing, read_foreign_state, refuse, rename
from sparseg.checkpoints.adapters_encoder import AdapterReport, load_encoder
from sparseg.checkpoints.adapters_monai import load_monai_encoder
from sparseg.checkpoints.adapters_published import load_selfmedmae_encoder
from sparseg.checkpoints.folder import find_model, load_model
from sparseg.checkpoints.key_tables import PUBLISHED, KeyTable
from sparseg.checkpoints.pretrained import is_pretrained, read_encoder
from sparseg.errors import CheckpointError
from sparseg.models.network import Network
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple

_PRUNING = "score predictor, belongs to the task"
_TASK = "not part of the encoder"
_OURS: KeyTable = (("encoder.*", "encoder.*"),)
_OUTSIDE: KeyTable = (
    ("encoder.prunings.*", _PRUNING),
    ("assembler.*", _TASK),
    ("decoder.*", _TASK),
)
_PUBLISHED_OUTSIDE: KeyTable = (
    ("encoder.score_predictor_list.*", _PRUNING),
    ("encoder.mid_norm_list.*", _TASK),
    ("encoder.policy", "carries no information"),
    ("completion_net.*", _TASK),
    ("decoder.*", _TASK),
)


@dataclass(frozen=True)
class InitReport:
    """What a network took over, and what it did not.

    Attributes:
        source: Kind of the source, such as "pre-training".
        matched: Parameters taken as they are, by their name in the source.
        resized: Parameters taken after resizing, each with both grids.
        dropped: Parameters of the source left out, with the reason.
        kept: Encoder parameters of the network that the source does not fill, with the reason.
        left: Parts of the network outside its encoder, with their number of parameters (tensors).
    """

    source: str
    matched: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, int], ...]

    def describe(self) -> str:
        """A few lines: what matched, then what did not, by reason."""
        lines = [f"encoder from a {self.source}: {len(self.matched)} tensors as they are"]
        lines += [f"  resized {name}" for name in self.resized]
        for verb, pairs in (("not taken", self.dropped), ("kept", self.kept)):
            for why in dict.fromkeys(why for _, why in pairs):
                names = [name for name, other in pairs if other == why]
                lines.append(f"  {verb}: {len(names)} ({why}): {listing(names, 3)}")
        if self.left:
            parts = ", ".join(f"{name} ({count})" for name, count in self.left)
            lines.append(f"  starting fresh: {parts}")
        return "\n".join(lines)


def load_encoder_init(net: Network, source: Path) -> InitReport:
    """Fill the encoder of `net` in place; nothing changes when an error is raised.

    Args:
        net: Network about to be trained.
        source: Run folder of `sparseg pretrain`; a model folder or run of `sparseg train`; or a checkpoint
            file of SelfMedMAE, of the published models, or of MONAI (ViT, ViTAutoEnc, MaskedAutoEncoderViT,
            UNETR). Files are read without running code from them.

    Returns:
        What matched, was resized, dropped and left. The patch embedding is dropped where channels or patch
        size differ, and the position table is resized to the network's grid.

    Raises:
        CheckpointError: nothing there, of an unknown kind, a tensor that is unknown or missing, or of another
            width or depth; a network, or a trained model, of another kind than ours.
    """
    net = _ours(net, source)
    if source.is_dir():
        kind, report = _from_folder(net, source)
    else:
        kind, report = _from_file(net, source)
    outside = (name.partition(".")[0] for name in net.state_dict() if not name.startswith("encoder."))
    return InitReport(
        kind, report.matched, report.resized, report.dropped, report.kept, tuple(Counter(outside).items())
    )


def _ours(net: Network, where: Path) -> SparseUNETR:
    """Refuse networks without our encoder."""
    if not isinstance(net, SparseUNETR):
        raise CheckpointError(
            "an encoder to start from goes between models of token sparsification",
            received=f"a {type(net).__name__}",
            remedy="leave --init out, or choose a preset that is no peer",
            where=where,
            code="init-kind",
        )
    return net


def _from_folder(net: SparseUNETR, folder: Path) -> tuple[str, AdapterReport]:
    if is_pretrained(folder):
        card, encoder = read_encoder(folder)
        state = {f"encoder.{name}": value for name, value in encoder.items()}
        return "pre-training", _take(net, state, card.model.grid, where=folder)
    path = find_model(folder)
    model = _ours(load_model(path), path)
    return "trained model", _take(net, model.state_dict(), model.config.grid, where=path)


def _from_file(net: SparseUNETR, file: Path) -> tuple[str, AdapterReport]:
    if file.suffix == ".safetensors":
        raise CheckpointError(
            "weights come with the card beside them",
            received=file.name,
            remedy="give the folder that holds the file",
            where=file,
            code="init-kind",
        )
    state = read_foreign_state(file)
    if "encoder_pos_embed" in state:
        return "SelfMedMAE checkpoint", load_selfmedmae_encoder(net, state)
    if "encoder.pos_embed" in state:
        return "published checkpoint", _take_renamed(net, rename(state, PUBLISHED, _PUBLISHED_OUTSIDE), file)
    if "vit.patch_embedding.position_embeddings" in state:
        vit = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
        report = load_monai_encoder(net, vit)
        others = tuple((key, _TASK) for key in state if not key.startswith("vit."))
        dropped = (*report.dropped, *others)
        return "MONAI UNETR", AdapterReport(report.matched, report.resized, dropped, report.kept)
    if "patch_embedding.position_embeddings" in state:
        return "MONAI encoder", load_monai_encoder(net, state)
    raise CheckpointError(
        "a checkpoint to start from must be of SelfMedMAE, the published models or MONAI",
        received=f"names such as {listing(list(state), 3)}",
        remedy="give such a file, or the run folder of sparseg pretrain or train",
        where=file,
        code="init-kind",
    )


def _take(net: SparseUNETR, state: Mapping[str, Tensor], grid: Triple, *, where: Path) -> AdapterReport:
    """Take our own encoder (`encoder.*`)."""
    return _take_renamed(net, rename(dict(sorted(state.items())), _OURS, _OUTSIDE), where, grid)


def _take_renamed(
    net: SparseUNETR, renamed: Renamed, where: Path, grid: Triple | None = None
) -> AdapterReport:
    """Take an encoder under our names whose position table has a row for its class token, if it has one."""
    found = dict(renamed.found)
    table = found.get("encoder.pos_embed")
    if table is None or table.ndim != 3:
        refuse(str(where), missing=[] if table is not None else ["encoder.pos_embed"], shapes=_axes(table))
    assert table is not None  # refused above
    num_extra = 1 if "encoder.cls_token" in found else 0
    found["encoder.pos_embed"] = table[:, num_extra:]
    report = load_encoder(
        net,
        Renamed(found, renamed.origin, renamed.dropped, renamed.unknown),
        source_grid=grid,
        where=str(where),
        may_lack_class_token=True,
    )
    if num_extra and net.encoder.cls_token is not None:
        # The class token's own row was trained with it; adapters of foreign tables have none.
        with torch.no_grad():
            net.encoder.pos_embed[:, :1] = table[:, :1]
    return report


def _axes(table: Tensor | None) -> list[str]:
    return [] if table is None else [f"encoder.pos_embed {tuple(table.shape)} instead of 3 axes"]
