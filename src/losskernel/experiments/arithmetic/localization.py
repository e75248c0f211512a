"""Localization (Proposition 2 of the paper): tasks on parameters of their own have an R of zero.

Networks whose parameters are split between the tasks: some elements of the weights are one number
for both tasks, of the others each task has its own. Which ones is fixed before training by a mask
over heads and MLP neurons, or is found in training by a penalty that pushes what tasks share to
zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.data.arithmetic import TASK_NAMES, probe_subset
from losskernel.errors import LossKernelError
from losskernel.experiments.arithmetic.setup import draw, gamma_of_rise, network_model, tables
from losskernel.experiments.arithmetic.statistics import measurements
from losskernel.files import write_csv
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.progress import bar
from losskernel.training.train import TrainingSettings, evaluate, learning_rate_factor
from losskernel.training.train import train as train_classifier

TASKS = len(TASK_NAMES)


class SplitNetwork(nn.Module):
    """A network for both tasks, each with weights ``mask * shared + own``.

    Args:
        model: the network whose function each task computes with its weights; it is not changed.
        masks: by name of its parameters, 1 where tasks share a number and 0 where they do not.
        additive: whether own weights are added where tasks share, too. If not, they are there only
            where tasks do not share.
    """

    def __init__(
        self, model: ArithmeticTransformer, masks: dict[str, Tensor], additive: bool = False
    ):
        super().__init__()
        self._network = [model]  # in a list: its parameters are none of this module
        self._names = list(masks)
        values = dict(model.named_parameters())
        self.shared = nn.ParameterList(values[name].detach().clone() for name in masks)
        # Where tasks share, the own part begins at zero: both then compute what the model does.
        self.own = nn.ParameterList(
            torch.stack([values[name].detach() * (1 - mask)] * TASKS)
            for name, mask in masks.items()
        )
        for number, mask in enumerate(masks.values()):
            self.register_buffer(f"mask_{number}", mask.clone())
            self.register_buffer(f"free_{number}", torch.ones_like(mask) if additive else 1 - mask)

    def forward(self, tokens: Tensor) -> Tensor:
        operands = self._network[0].embed_tokens.num_embeddings - TASKS - 1
        task = tokens[:, 1] - operands
        parts = []
        for which in range(TASKS):
            weights = {
                name: getattr(self, f"mask_{number}") * shared
                + getattr(self, f"free_{number}") * own[which]
                for number, (name, shared, own) in enumerate(
                    zip(self._names, self.shared, self.own, strict=True)
                )
            }
            chosen = tokens[task == which]
            parts.append(torch.func.functional_call(self._network[0], weights, (chosen,)))
        order = torch.argsort(task, stable=True)
        return torch.cat(parts)[torch.argsort(order)]

    @property
    def shared_share(self) -> float:
        """Share of the network's parameters that are one number for both tasks and not zero."""
        masks = [getattr(self, f"mask_{number}") for number in range(len(self._names))]
        used = sum(
            float(((mask * shared) != 0).sum())
            for mask, shared in zip(masks, self.shared, strict=True)
        )
        return used / sum(mask.numel() for mask in masks)

    def freeze_zeros(self) -> None:
        """Take shared numbers that are zero out of the network: no probe moves them any more."""
        for number, shared in enumerate(self.shared):
            getattr(self, f"mask_{number}").mul_((shared != 0).to(shared.dtype))


def split_masks(model: ArithmeticTransformer, share: float | None) -> dict[str, Tensor]:
    """Masks of which ``share`` of the heads and MLP neurons is for both tasks; None: everything.

    All other parameters (embeddings, normalizations, the unembedding) are each task's own, unless
    everything is shared.
    """
    if share is None:
        return {name: torch.ones_like(value) for name, value in model.named_parameters()}
    masks = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for number, block in enumerate(model.blocks):
        head = block.attention.query.out_features // block.attention.heads
        heads = round(share * block.attention.heads) * head
        neurons = round(share * block.mlp.up.out_features)
        for name in ("query", "key", "value"):
            masks[f"blocks.{number}.attention.{name}.weight"][:heads] = 1
        masks[f"blocks.{number}.attention.out.weight"][:, :heads] = 1
        masks[f"blocks.{number}.mlp.up.weight"][:neurons] = 1
        masks[f"blocks.{number}.mlp.up.bias"][:neurons] = 1
        masks[f"blocks.{number}.mlp.down.weight"][:, :neurons] = 1
    return masks


def train_sparse(
    model: SplitNetwork, inputs: Tensor, targets: Tensor, settings: TrainingSettings, penalty: float
) -> None:
    """Adam on all rows at once; after each step what tasks share shrinks by ``penalty`` times rate.

    Soft thresholding, the proximal step of an L1 penalty, whose zeros are exact; own numbers decay
    as the settings say.
    """
    groups = [
        {"params": list(model.shared), "weight_decay": 0.0},
        {"params": list(model.own), "weight_decay": settings.weight_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.warmup, settings.steps)
    )
    model.train()
    for _ in bar(range(settings.steps), "train", unit="step"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        shrink = penalty * schedule.get_last_lr()[0]
        with torch.no_grad():
            for shared in model.shared:
                shared.copy_(torch.sign(shared) * (shared.abs() - shrink).clamp_min(0))
        schedule.step()
    model.freeze_zeros()
    model.eval()


def localize(settings: dict, seed: int, output: Path) -> None:
    """R within and across tasks against the share of parameters that tasks share, a row a network.

    Raises:
        LossKernelError: a network does not answer its training pairs.
    """
    network = settings["network"]
    kept, _ = tables(network, settings["train_share"], seed)
    inputs = probe_subset(kept, settings["probe_inputs"], seed)
    training = TrainingSettings(**settings["training"])
    cases = [("mask", share) for share in [None, *settings["shares"]]]
    cases += [("penalty", penalty) for penalty in settings["penalties"]]
    rows = []
    for kind, value in cases:
        base = network_model(network, seed)
        if kind == "mask":
            model = SplitNetwork(base, split_masks(base, value))
            train_classifier(model, kept.inputs, kept.targets, training, seed)
        else:
            model = SplitNetwork(base, split_masks(base, None), additive=True)
            train_sparse(model, kept.inputs, kept.targets, training, value)
        _, accuracy = evaluate(model, kept.inputs, kept.targets)
        if accuracy < settings["accuracy"]:
            raise LossKernelError(
                f"localization: {kind} {value}, seed {seed}: training accuracy {accuracy:.3f} is "
                f"below {settings['accuracy']:g}; raise arithmetic.localization.training.steps"
            )
        gamma = gamma_of_rise(model, inputs, settings["rise"], settings["directions"], seed)
        trace = draw(model, inputs, gamma, settings["draws"], seed, progress=False)
        row = {"training_seed": seed, "kind": kind, "value": value, "accuracy": accuracy}
        rows.append(row | {"shared": model.shared_share, "gamma": gamma} | measurements(trace))
    write_csv(pd.DataFrame(rows).assign(value=lambda rows: rows["value"].astype(float)), output)


def equivalent_to_zero(values: np.ndarray, margin: float) -> float:
    """P value of the hypothesis that a mean is ``margin`` or more from zero: two one-sided t tests.

    Of values of 2 networks or more. Schuirmann 1987, Journal of Pharmacokinetics and
    Biopharmaceutics 15, 657.
    """
    from scipy.stats import t  # here, as it is slow to import

    error = values.std(ddof=1) / np.sqrt(len(values))
    distance = margin - abs(values.mean())
    return float(t.sf(distance / error, len(values) - 1))
