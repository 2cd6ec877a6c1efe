"""A deterministic training loop with progress, resumption and provenance, shared by the reference models."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import frozen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LossFn = Callable[[nn.Module, torch.Generator], Tensor]


@frozen
class Settings:
    """Settings of one training; the defaults are those of the video DiT."""

    iterations: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.998
    weight_decay: float = 0.01
    seed: int = 0
    bfloat16: bool = True
    log_every: int = 20
    checkpoint_every: int = 200


def train(model: nn.Module, loss_fn: LossFn, settings: Settings, work: Path) -> nn.Module:
    """Train with Muon on the block matrices and AdamW on the rest, and return the averaged weights.

    Every iteration draws from a generator seeded by (seed, iteration), so that a resumed training sees the data an
    uninterrupted one would have seen.

    Args:
        model: network to train, in place.
        loss_fn: ``(model, generator) -> scalar`` mean loss of one batch.
        settings: see `Settings`.
        work: folder of the checkpoint and of ``loss.csv``; a checkpoint found there is resumed.

    Returns:
        The model with the exponential moving average of its weights.
    """
    work.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(model, settings)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = _resume(work, model, average, optimizers)
    log = _open_log(work / "loss.csv", start)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=settings.iterations, completed=start)
        running = 0.0
        for iteration in range(start, settings.iterations):
            scale = _learning_rate_scale(iteration, settings)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * scale
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                loss = loss_fn(model, generator)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            decay = min(settings.ema, (1 + iteration) / (10 + iteration))
            with torch.no_grad():
                for name, p in model.named_parameters():
                    average[name].lerp_(p, 1.0 - decay)
            running += loss.item() / settings.log_every
            done = iteration + 1
            if done % settings.log_every == 0:
                progress.update(task, completed=done, description=f"loss {running:.4f}")
                log.writerow([done, f"{running:.5f}"])
                running = 0.0
            if done % settings.checkpoint_every == 0 or done == settings.iterations:
                _save(work, done, model, average, optimizers)
    model.load_state_dict(average, strict=False)
    return model


def publish(model: nn.Module, path: Path, provenance: dict[str, object]) -> None:
    """Write the weights as safetensors and, beside them, a JSON file that says where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, path)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    path.with_suffix(".json").write_text(json.dumps({**provenance, "versions": versions}, indent=2) + "\n")


def _optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "blocks" in name and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(rest, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    return [muon, adamw]


def _learning_rate_scale(iteration: int, settings: Settings) -> float:
    warm = min(1.0, (iteration + 1) / settings.warmup)
    cosine = 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * iteration / settings.iterations)).item())
    return warm * (0.02 + 0.98 * cosine)


def _save(
    work: Path, done: int, model: nn.Module, average: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]
) -> None:
    tensors = {"done": torch.tensor(done)}
    tensors |= {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.items()}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer/{number}/{parameter}/{key}"] = torch.as_tensor(value)
    partial = work / "checkpoint.partial"
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, partial)
    partial.replace(work / "checkpoint.safetensors")


def _resume(work: Path, model: nn.Module, average: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]) -> int:
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    average.update({k[8:]: v for k, v in tensors.items() if k.startswith("average/")})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            parts = key.split("/")
            if parts[0] == "optimizer" and int(parts[1]) == number:
                state.setdefault(int(parts[2]), {})[parts[3]] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["done"].item())


class _Log:
    def __init__(self, path: Path, start: int) -> None:
        kept = []
        if path.exists():
            with path.open() as file:
                kept = [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= start]
        self._path = path
        with path.open("w") as file:
            csv.writer(file).writerows([["iteration", "loss"], *kept])

    def writerow(self, row: list[object]) -> None:
        with self._path.open("a") as file:
            csv.writer(file).writerow(row)


def _open_log(path: Path, start: int) -> _Log:
    return _Log(path, start)
