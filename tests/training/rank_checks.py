"""What each of two processes measures for `test_ranks.py`; run by torchrun with a dataset and a folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseg.errors import ConfigError, ResourceError
from sparseg.models.build import build_segmenter
from sparseg.training import ranks
from sparseg.training.data import open_dataset
from sparseg.training.loop import Run
from sparseg.training.loss_config import LossConfig
from sparseg.training.losses import make_loss
from sparseg.training.monitor import Silent
from sparseg.training.sharding import shard
from sparseg.training.start import stored_config, train
from sparseg.training.stopping import Reason
from sparseg.training.validate import validate


def losses(**settings: Any) -> dict[str, float]:
    """Loss and gradient of half a batch in each process against those of the whole batch."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (4, 1, 4, 4, 4), generator=generator)
    target[:2] = 0  # the first process has no structure at all
    loss = make_loss(LossConfig.model_validate(settings), regions=False)
    part = logits[2 * ranks.rank() :][:2].clone().requires_grad_()
    mine = loss(part, target[2 * ranks.rank() :][:2])
    mine.backward()
    assert part.grad is not None
    # In place of what DDP does with gradients of weights.
    gradient = torch.zeros_like(logits)
    gradient[2 * ranks.rank() :][:2] = part.grad
    mean, gradient = (torch.stack(ranks.gather_from_all(v)).mean(dim=0) for v in (mine.detach(), gradient))
    return {"mine": float(mine.detach()), **compare(loss, logits, target, mean, gradient)}


def compare(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, mean: Tensor, gradient: Tensor
) -> dict[str, float]:
    """Largest differences from one process with the whole batch."""
    whole = logits.clone().requires_grad_()
    with alone():
        expected = loss(whole, target)
    expected.backward()
    assert whole.grad is not None
    return {
        "loss": abs(float(mean - expected.detach())),
        "gradient": float((gradient - whole.grad).abs().max()),
    }


class alone:  # noqa: N801
    """Lets the loss believe that there is one process."""

    def __enter__(self) -> None:
        from sparseg.training import losses as module

        self.module, self.real = module, module.world
        module.world = lambda: 1  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self.module.world = self.real


def gradients_missing(strategy: str, **model: Any) -> int:
    """Parameters without a finite gradient after two steps, in this process."""
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", **model).train()
    wrapped: torch.nn.Module = net
    if strategy == "fsdp":
        shard(net, torch.device("cpu"), ranks.world())
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
    for step in range(2):  # DDP complains of an unused parameter at the second
        net.zero_grad()
        image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(step))
        out = wrapped(image, return_selection=True).logits
        levels = out if isinstance(out, list) else [out]
        torch.stack([level.square().mean() for level in levels]).sum().backward()
    return sum(parameter.grad is None for parameter in net.parameters())


def turns() -> list[tuple[int, float, float]]:
    """When each process was at work."""

    def work() -> tuple[int, float, float]:
        begun = time.monotonic()
        time.sleep(0.2)
        return ranks.rank(), begun, time.monotonic()

    return ranks.gather_from_all(ranks.in_turns(work))


def failures() -> list[str]:
    """What each process sees of a failure in another one."""

    def fail_in(number: int) -> str:
        if ranks.rank() == number:
            raise ConfigError("this one fails", remedy="nothing")
        return "fine"

    seen = []
    for call in (
        lambda: ranks.of_main_process(lambda: fail_in(0)),
        lambda: ranks.in_turns(lambda: fail_in(1)),
    ):
        try:
            seen.append(call())
        except ConfigError:
            seen.append("mine")
        except ResourceError as error:
            seen.append(str(error.received))
    return seen


def go_on_sharded(dataset: Path, run: Path) -> dict[str, Any]:
    """Resume a run of one process with shared-out weights, up to one more step."""
    config = stored_config(run).model_copy(update={"strategy": "fsdp", "batch_size": 2})
    done, reason, _ = train(
        *open_dataset(dataset), run, config, Silent(), resume=True, until=stored_steps(run) + 1
    )
    assert reason is Reason.UNTIL
    return {"step": done.progress.step, "crops": done.progress.crops, "validation": shared_validation(done)}


def shared_validation(run: Run) -> list[list[float]]:
    """Dice of all cases, shared and by this process alone."""
    net, result = run.best_weights, []
    cases = [*run.data.training, *run.data.validation][:3]  # not a multiple of the processes
    for shares in (True, False):
        if not shares:
            import sparseg.training.validate as module

            module.world, module.rank = (lambda: 1), (lambda: 0)  # type: ignore[assignment]
            module.gather_from_all = lambda value: [value]  # type: ignore[assignment]
        result.append(validate(net, cases, regions={}, overlap=0.5, pad_value=0.0, device="cpu"))
    return result


def stored_steps(run: Path) -> int:
    return max(int(path.stem.removeprefix("step_")) for path in (run / "state").glob("step_*.json"))


def main(dataset: Path, run: Path, output: Path) -> None:
    with ranks.joined():
        report = {
            "world": ranks.world(),
            "dice": losses(kind="dice"),
            "dice_ce": losses(),
            "weighted": losses(class_weights=(0.2, 1.0, 3.0)),
            "without_background": losses(kind="dice", include_background=False),
            "sum": float(ranks.sum_over_ranks(torch.tensor(1.0 + ranks.rank()))),
            "missing": [
                gradients_missing("ddp"),
                gradients_missing("ddp", pruning_stages=()),
                gradients_missing("ddp", deep_supervision=2, drop_path=0.5),
                gradients_missing("fsdp"),
            ],
            "turns": turns(),
            "failures": failures(),
            "sharded": go_on_sharded(dataset, run),
        }
        reports = ranks.gather_from_all(report)
        if ranks.rank() == 0:
            output.write_text(json.dumps(reports))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
