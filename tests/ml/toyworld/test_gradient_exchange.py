"""Two processes that average their gradients must leave with the same mean, step after step."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from worker.ml.toyworld.gradient_exchange import GradientExchange, shared_slots

SHAPES = ((3, 4), (5,))
STEPS = 7


def _gradients(rank: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def _process(rank: int, port: int, slots: Tensor, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    exchange = GradientExchange(slots, rank)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    seen, over = [], []
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, _gradients(rank, step), strict=True):
            parameter.grad = gradient
        over.append(exchange.average(parameters, over=rank == 1 and step == STEPS - 1))
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])
    torch.save((seen, over), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_become_the_mean_of_both_processes(tmp_path: Path) -> None:
    slots = shared_slots(sum(torch.Size(shape).numel() for shape in SHAPES), 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    spawn(_process, (port, slots, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        seen, over = torch.load(tmp_path / f"{rank}.pt")
        assert over == [False] * (STEPS - 1) + [True]  # one process out of time ends both
        for step, found in enumerate(seen):
            mean = [(a + b) / 2 for a, b in zip(_gradients(0, step), _gradients(1, step), strict=True)]
            assert all(torch.allclose(x, y) for x, y in zip(found, mean, strict=True))
