"""Steps of the equations of losses in plain loops, for the references of the tests."""

import torch
from torch import Tensor


def positives(y: list[int], a: int) -> list[int]:
    return [i for i in range(len(y)) if i != a and y[i] == y[a]]


def negatives(y: list[int], a: int) -> list[int]:
    return [i for i in range(len(y)) if y[i] != y[a]]


def pairs(y: list[int]) -> list[tuple[int, int]]:
    return [(a, p) for a in range(len(y)) for p in positives(y, a)]


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum().sqrt()


def unit(v: Tensor) -> Tensor:
    return v / v.square().sum().sqrt()


def hinge(v: Tensor) -> Tensor:
    return torch.clamp(v, min=0)


def mean(terms: list[Tensor]) -> Tensor:
    assert terms, "the test needs terms"
    return torch.stack(terms).mean()


def total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()


def cross_entropy(logits: list[Tensor], target: int) -> Tensor:
    return torch.log(total([torch.exp(v - logits[target]) for v in logits]))
