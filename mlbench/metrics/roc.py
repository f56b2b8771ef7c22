"""What a verification found: pure values, which records keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval over classes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold at which at most a share ``far`` of pairs of two classes is accepted.

    Attributes:
        far: false accept rate that was allowed.
        tar: true accept rate there: the share of pairs of one class that is accepted.
        threshold: cosine from which on a pair is accepted.
    """

    far: float
    tar: Interval
    threshold: Interval


@dataclass(frozen=True)
class Verification:
    """How well a threshold on the cosine tells pairs of one class from pairs of two.

    Attributes:
        genuine: number of pairs of one class.
        impostor: number of pairs of two classes.
        eer: equal error rate: the false accept rate where the false reject rate equals it.
        points: at each false accept rate that the number of impostor pairs allows.
        roc: ``(FAR, TAR)``, ascending.
    """

    genuine: int
    impostor: int
    eer: Interval
    points: tuple[OperatingPoint, ...]
    roc: tuple[tuple[float, float], ...]
