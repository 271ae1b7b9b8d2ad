"""Transfer: how well a trained image classifier does on tasks that it was not trained for, by several protocols.

A task is a set of labelled images; a protocol says how the network is adapted to it: not at all (`FewShot`, `LinearProbe`:
a linear classifier on frozen features) or as a whole (`FineTune`). Only the test split is reported. Whatever is chosen (a
learning rate, a penalty) is chosen on the validation split, and the training is then repeated on the training and validation
splits together (ViT, App. B.1.1).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from lightning_vl.errors import UserError
from lightning_vl.evaluation.few_shot import FewShot, LinearProbe
from lightning_vl.evaluation.fine_tune import FineTune
from lightning_vl.evaluation.transfer_task import Protocol, TaskImages, TransferTask
from lightning_vl.terminal import say

__all__ = ["FewShot", "FineTune", "LinearProbe", "Protocol", "TransferTask", "check_tasks", "means", "run", "run_all"]


def run(net: nn.Module, task: TransferTask, seed: int, device: torch.device) -> dict[str, float]:
    """Measures a network's transfer to a task. The network and the global random state are left as they are.

    Args:
        net: an image classifier: `image_size`; `forward((b, 3, h, w) in [-1, 1])` gives `logits` (b, k) and `features`
            (b, d); `reset_head(classes)`.
        task: the images and the protocols.
        seed: seed of whatever is trained.
        device: where to compute.

    Returns:
        `transfer/<task>/<protocol>`, shares in [0, 1], and beside them `baseline/<task>_majority`, what the commonest class
        of the test split makes.

    Raises:
        UserError: the task's images cannot be had, or are too few for a protocol.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        images = TaskImages(task, net.image_size, device)  # type: ignore[arg-type]
        frozen = deepcopy(net).float().to(device).eval()  # batches are float32
        found: dict[str, float] = {}
        for protocol in task.protocols:
            found.update(protocol.evaluate(frozen, images, seed))
    test = images.labels("test")
    baseline = float(np.bincount(test).max() / len(test))
    results = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
    say(f"transfer to {task.name}: {results} (majority {100 * baseline:.1f} %)")
    metrics = {f"transfer/{task.name}/{name}": value for name, value in found.items()}
    return {**metrics, f"baseline/{task.name}_majority": baseline}


def run_all(net: nn.Module, tasks: Sequence[TransferTask], seed: int, device: torch.device) -> dict[str, float]:
    """The metrics of `run` for all tasks, and of `means`.

    Raises:
        UserError: two tasks have one name, or see `run`.
    """
    check_names(tasks)
    metrics: dict[str, float] = {}
    for task in tasks:
        metrics.update(run(net, task, seed, device))
    return {**metrics, **means(metrics)}


def check_tasks(net: nn.Module, tasks: Sequence[TransferTask]) -> None:
    """Finds before training what can be wrong with its transfer tasks: names, images, too few of them.

    Raises:
        UserError: something is.
    """
    check_names(tasks)
    if tasks and not hasattr(net, "reset_head"):
        raise UserError(
            f"transfer is of image classifiers, and the network is a {type(net).__name__}",
            "leave transfer out, or train a ViT or a BiT",
        )
    for task in tasks:
        images = TaskImages(task, net.image_size, torch.device("cpu"))  # type: ignore[arg-type]
        for protocol in task.protocols:
            protocol.check(images)


def check_names(tasks: Sequence[TransferTask]) -> None:
    """Each task has a name of its own."""
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two transfer tasks are called {twice[0]}", "give each its own name under transfer")


def means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means over tasks, by protocol: of each group, and of all tasks (not of the groups' means), as VTAB reports them.

    Args:
        metrics: `transfer/<task>/<protocol>`, where a task may be `<group>/<name>`; others are passed over.

    Returns:
        `transfer/<group>/mean/<protocol>`, and `transfer/mean/<protocol>` where there is more than one task.
    """
    gathered: dict[str, list[float]] = {}
    for name, value in metrics.items():
        prefix, *task, protocol = name.split("/")
        if prefix != "transfer":
            continue
        gathered.setdefault(f"transfer/mean/{protocol}", []).append(value)
        if len(task) > 1:
            gathered.setdefault(f"transfer/{task[0]}/mean/{protocol}", []).append(value)
    return {
        name: sum(values) / len(values)
        for name, values in gathered.items()
        if len(values) > 1 or not name.startswith("transfer/mean/")
    }
