"""An exponential moving average of what is being trained, as the result in its stead (EMA; methods.md 2).

``e <- d_n e + (1 - d_n) p`` after optimiser step n = 1, 2, ..., with ``d_n = min(d, (1 + n) / (10 + n))`` as in
diffusers' ``EMAModel``: a short training would else stay where it began, for e starts at the base model as p does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from worker.ml.training.trainee import Trainee

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def averaged(trainee: Trainee, decay: float) -> Trainee:
    """``trainee`` whose previews and result are the average, kept in its checkpoints; ``decay`` 0: as it is.

    ``decay`` in [0, 1). Every trained tensor is averaged, words included, in its own dtype.
    """
    if decay == 0.0:
        return trainee
    trained = trainee.tensors()
    averages = {name: tensor.detach().clone() for name, tensor in trained.items()}
    steps = torch.zeros((), dtype=torch.int64)

    @contextmanager
    def in_place() -> Iterator[None]:
        _exchange(trained, averages)
        try:
            yield
        finally:
            _exchange(trained, averages)

    def of_average(made: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            with in_place():
                return made(*arguments, **named)

        return call

    @torch.no_grad()
    def take_in() -> None:
        trainee.constrain()
        steps.add_(1)
        step = int(steps)
        share = 1.0 - min(decay, (1 + step) / (10 + step))
        for name, average in averages.items():
            average.lerp_(trained[name], share)

    return replace(
        trainee,
        result=of_average(trainee.result),
        preview=of_average(trainee.preview),
        constrain=take_in,
        followers={
            **trainee.followers,
            "ema/steps": steps,
            **{f"ema/{name}": each for name, each in averages.items()},
        },
    )


def _exchange(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Their numbers change places; no copy is made."""
    for name, tensor in some.items():
        tensor.data, others[name].data = others[name].data, tensor.data
