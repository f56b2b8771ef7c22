"""The contract passes what is sound and names what is broken, flaw by flaw."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.contract import CheckResult, assert_loss, check_loss, resolve_subject, subject, suite
from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry
from mlbench.losses.npairs import NPairs
from mlbench.registry import LOSSES

BUILTIN = [e for e in LOSSES.entries() if e.source == "built-in" and not e.prefix]


class Centers(nn.Module):
    """A small SoftTriple, sound as it stands; the flawed ones override one step of it."""

    def __init__(
        self, num_classes: int, embedding_dim: int, *, la: float = 10.0, tau: float = 0.2
    ) -> None:
        super().__init__()
        self.la, self.tau = la, tau
        self.w = nn.Parameter(torch.randn(self.rows(num_classes), 3, embedding_dim))

    def rows(self, num_classes: int) -> int:
        return num_classes

    def unit(self) -> Tensor:
        return F.normalize(self.w, dim=2)

    def logits(self, x: Tensor) -> Tensor:
        similarity = torch.einsum("bd,ckd->bck", x, self.unit())
        return self.la * (F.softmax(5 * similarity, dim=2) * similarity).sum(dim=2)

    def penalty(self) -> Tensor:
        w = self.unit()
        return self.tau * (w - w.mean(dim=1, keepdim=True)).square().sum(dim=2).mean()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), y) + self.penalty()


class WrongAxis(Centers):
    def unit(self) -> Tensor:
        return F.normalize(self.w, dim=0)


class NoRegulariser(Centers):
    def penalty(self) -> Tensor:
        return self.w.new_zeros(())


class OneBased(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), y - 1) + self.penalty()


class OneRowTooMany(Centers):
    def rows(self, num_classes: int) -> int:
        return num_classes + 1

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y + 1)


class RowBefore(Centers):
    """One-based as well, but 0 - 1 = -1 is a valid index, that of the last row."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        log_p = F.log_softmax(self.logits(x), dim=1)
        return self.penalty() - log_p[torch.arange(len(y)), y - 1].mean()


class IgnoresClassZero(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), y, ignore_index=0) + self.penalty()


class Vector(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), y, reduction="none") + self.penalty()


class PlainNumber(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y).item()  # type: ignore[return-value]


class Infinite(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) / 0


class DetachedEmbeddings(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x.detach(), y)


class DeadParameter(Centers):
    def __init__(self, num_classes: int, embedding_dim: int, **params: float) -> None:
        super().__init__(num_classes, embedding_dim, **params)
        self.dead = nn.Parameter(torch.ones(num_classes))


class Unregistered(Centers):
    def __init__(self, num_classes: int, embedding_dim: int, **params: float) -> None:
        super().__init__(num_classes, embedding_dim, **params)
        self.bias = [torch.zeros(num_classes, requires_grad=True)]

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) + self.bias[0]


class UnsavedState(Centers):
    def __init__(self, num_classes: int, embedding_dim: int, **params: float) -> None:
        super().__init__(num_classes, embedding_dim, **params)
        self.offset = torch.randn(embedding_dim)

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x + self.offset)


class Random(Centers):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * (1 + random.random())


class ByPosition(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(self.logits(x), y, reduction="none")
        return (each * torch.linspace(0, 2, len(x))).mean() + self.penalty()


class ClassWeights(Centers):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * torch.arange(1, self.w.shape[0] + 1)


class NanOnZero(Centers):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x / x.norm(dim=1, keepdim=True))


class NanGradientOnZero(Centers):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) + 0 * x.square().sum(dim=1, keepdim=True).sqrt()


class OverflowsUnderAutocast(Centers):
    def unit(self) -> Tensor:
        return 1e6 * super().unit()

    def logits(self, x: Tensor) -> Tensor:
        return 1e-6 * self.la * torch.einsum("bd,ckd->bck", x, self.unit()).mean(dim=2)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class WrongGradient(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(_Doubled.apply(x), y)


class Waits(Centers):
    def penalty(self) -> Tensor:
        return super().penalty() if float(self.w.detach().sum()) else self.w.sum()


class ReadsList(Centers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, torch.tensor(y.tolist()))


class ConstantWeights(Centers):
    """As in circle loss; no flaw."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * (2 + super().logits(x).detach())


class PushesApart(NPairs):
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return torch.exp(-super().forward(embeddings, labels))


class NormalisedNPairs(NPairs):
    """Its L2 term alone feels the length of the embeddings."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        pairs = NPairs(0, 0, l2_reg=0)(F.normalize(embeddings), labels)
        return pairs + self.l2_reg * embeddings.square().sum(dim=1).mean()


class NoGraphWithoutPairs(NPairs):
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        alone = len(labels.unique()) in (1, len(labels))
        return torch.zeros(()) if alone else super().forward(embeddings, labels)


class Memory(nn.Module):
    """Hinges on the cosines of a batch with itself and with a memory; sound as it stands."""

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("rows", torch.zeros(2 * 3 * num_classes, embedding_dim))
        self.register_buffer("classes", torch.full((2 * 3 * num_classes,), -1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.against(x, y)
        if self.training:
            self.remember(x.detach(), y)
        return loss

    def against(self, x: Tensor, y: Tensor) -> Tensor:
        cosine = torch.cat([x, self.get_buffer("rows").to(x.dtype)]) @ x.T
        classes = torch.cat([y, self.get_buffer("classes")])[:, None]
        alike = 1 - cosine
        alike = alike.masked_fill(torch.eye(*alike.shape, dtype=torch.bool), 0)
        losses = torch.where(classes == y, alike, F.relu(cosine - self.margin))
        return (losses * (classes >= 0)).sum() / len(y)

    def remember(self, x: Tensor, y: Tensor) -> None:
        for name, new in (("rows", x), ("classes", y)):
            old = self.get_buffer(name)
            old.copy_(torch.cat([new.to(old.dtype), old])[: len(old)])


class LeakyMemory(Memory):
    """It remembers outside of its buffers."""

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.5) -> None:
        super().__init__(num_classes, embedding_dim, margin=margin)
        self.last: Tensor | None = None

    def against(self, x: Tensor, y: Tensor) -> Tensor:
        drift = 0.0 if self.last is None else (x.mean(dim=0) - self.last).square().sum()
        return super().against(x, y) + drift

    def remember(self, x: Tensor, y: Tensor) -> None:
        super().remember(x, y)
        self.last = x.mean(dim=0)


class OwnBatch(Memory):
    """It compares a batch with the copy of it that it has just put into its memory."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            self.remember(x.detach(), y)
        return self.against(x, y)


class RemembersEvaluation(Memory):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.against(x, y)
        self.remember(x.detach(), y)
        return loss


class ByContext(nn.Module):
    """It uses all that a loss may declare; no flaw."""

    def __init__(self, num_classes: int, embedding_dim: int, *, begin: int = 1000) -> None:
        super().__init__()
        self.begin = begin

    def forward(self, x: Tensor, y: Tensor, context: Any) -> Tensor:
        assert context.keys() == {"features", "views", "step", "levels"}
        alike = context["views"][:, None] == context["views"]
        near = context["levels"][:, None, 0] == context["levels"][:, 0]
        cosine = x @ x.T
        late = 1.0 if context["step"] >= self.begin else 0.0
        apart = F.relu(cosine - 0.2).where(~near, cosine.new_zeros(())).mean()
        pull = (1 - cosine).where(y[:, None] == y, cosine.new_zeros(())).mean()
        return pull + apart + late * (cosine * alike).mean() + context["features"].square().mean()


def stateful(factory: Callable[..., nn.Module], **declared: Any) -> LossEntry:
    declaration = {"images_per_class": 3, "defaults": {"margin": 0.5}, **declared}
    return LossEntry(name="memory", target=factory, summary="", **declaration)


def centers(factory: Callable[..., Any], **declared: Any) -> LossEntry:
    declaration = {"proxies": "unit", "lr": 0.01, "defaults": {"la": 10.0, "tau": 0.2}}
    return LossEntry(name="centers", target=factory, summary="", **{**declaration, **declared})


def pairs(factory: Callable[..., nn.Module], **declared: Any) -> LossEntry:
    declaration = {"images_per_class": 2, "unit_length": False, "defaults": {"l2_reg": 0.005}}
    return LossEntry(name="pairs", target=factory, summary="", **{**declaration, **declared})


def one(check: str, entry: LossEntry) -> CheckResult:
    """Make one check, as the suite would."""
    return suite._run(entry, check, {**suite._FIRST, **suite._REST}[check])


@pytest.mark.parametrize("entry", BUILTIN, ids=lambda entry: entry.name)
def test_built_in_losses_keep_the_contract(entry: LossEntry) -> None:
    assert_loss(entry)


@pytest.mark.parametrize(
    "entry",
    [
        centers(Centers),
        centers(Centers, lr={"w": 0.01}),
        pairs(NPairs),
        stateful(Memory),
        stateful(
            ByContext,
            defaults={"begin": 1000},
            context=("features", "views", "step", "levels"),
        ),
    ],
    ids=["centers", "rates", "pairs", "memory", "context"],
)
def test_sound_losses_keep_the_contract(entry: LossEntry) -> None:
    assert_loss(entry)


@pytest.mark.parametrize(
    ("entry", "check", "message"),
    [
        (centers(WrongAxis), "declared-proxies", "wrong axis"),
        (centers(NoRegulariser), "parameters-matter", "'tau' from 0.2"),
        (pairs(NormalisedNPairs), "declared-length", "it normalises"),
        (centers(OneBased), "labels-from-zero", "label 0 of 0 .. 6 raised IndexError"),
        (centers(OneRowTooMany), "labels-from-zero", r"'w' has shape \(8, 3, 5\) for 7 classes"),
        (centers(RowBefore), "label-renaming", "with the wrong row"),
        (centers(IgnoresClassZero), "labels-from-zero", "class 0 of 0 .. 6 get no gradient"),
        (centers(Vector), "finite-scalar", r"got \(15,\)"),
        (centers(PlainNumber), "finite-scalar", "got float"),
        (centers(Infinite), "finite-scalar", "got inf"),
        (centers(lambda num_classes: None), "finite-scalar", "cannot be built"),
        (centers(DeadParameter), "gradients-reach", "no gradient reaches dead"),
        (centers(Unregistered), "gradients-reach", r"shape \(7,\) gets gradients but is not a"),
        (centers(UnsavedState), "state-round-trip", "after loading the state dict"),
        (centers(Random), "deterministic", "only from torch"),
        (centers(ByPosition), "batch-order", "when the batch is reordered"),
        (centers(ClassWeights), "label-renaming", "when classes change their numbers"),
        (centers(NanOnZero), "edge-batches", "with zero vectors gives the loss nan"),
        (centers(NanGradientOnZero), "edge-batches", "a gradient that is not finite"),
        (pairs(NoGraphWithoutPairs), "edge-batches", r"without positives: .* backward\(\) raises"),
        (centers(OverflowsUnderAutocast), "half-precision", "float16"),
        (centers(WrongGradient), "true-gradient", "not the derivative"),
        (centers(Waits), "no-synchronisation", "local_scalar_dense"),
        (centers(ReadsList), "no-synchronisation", "local_scalar_dense"),
        (pairs(PushesApart), "learns", "raise R@1"),
        (centers(Centers, proxies="none", lr=None), "declared-proxies", "trains w"),
        (centers(Centers, lr=None), "declared-proxies", "need a rate"),
        (centers(Centers, lr={"v": 0.1}), "declared-proxies", r"no learning rate \(lr\) of w"),
        (stateful(LeakyMemory), "deterministic", "keeps state outside of its buffers"),
        (stateful(OwnBatch), "memory", r"itself in its memory 'rows', .* after its loss"),
        (stateful(RemembersEvaluation), "memory", "'rows' in evaluation mode"),
        (stateful(ByContext, defaults={}, context=("step",)), "finite-scalar", "AssertionError"),
        (pairs(NPairs, proxies="free", lr=1.0), "declared-proxies", "has no learnable parameters"),
        (centers(Centers, defaults={"lambda_": 9.0}), "finite-scalar", "lambda_"),
    ],
    ids=lambda value: getattr(getattr(value, "target", None), "__name__", None),
)
def test_flaws_are_caught_by_name(entry: LossEntry, check: str, message: str) -> None:
    result = one(check, entry)
    assert not result.passed
    assert re.search(message, result.message)


def test_assert_loss_lists_what_failed() -> None:
    with pytest.raises(AssertionError, match=r"contract\nparameters-matter: changing 'tau'"):
        assert_loss(centers(NoRegulariser))


def test_embeddings_out_of_the_graph_are_caught() -> None:
    result = one("labels-from-zero", centers(DetachedEmbeddings))
    assert "class 0 of 0 .. 6 get no gradient" in result.message


def test_what_the_first_checks_fail_skips_the_others() -> None:
    first, *rest = check_loss(centers(Vector))
    assert not first.passed
    assert {r.skipped for r in rest[1:]} == {True}
    assert {r.message for r in rest[1:]} == {"needs finite-scalar"}


def test_a_memory_is_checked_with_what_it_holds_in_training() -> None:
    """Each evaluation starts from the same buffers, which earlier batches have filled."""
    module, given = subject.build(stateful(Memory)), subject.batch(stateful(Memory), 0)
    kept = module.get_buffer("rows").clone()
    first, second = (subject.value(module, given) for _ in range(2))
    assert kept.any()
    assert torch.equal(module.get_buffer("rows"), kept)
    assert first == second
    assert first != subject.value(Memory(subject.CLASSES, subject.DIM), given)


def test_checks_that_do_not_apply_say_why() -> None:
    assert one("memory", centers(Centers)).message == "it has no buffers that batches change"
    assert one("declared-length", centers(Centers)) == CheckResult(
        "declared-length", True, "unit_length=True: the trainer normalises", skipped=True
    )


def test_deliberately_detached_factors_are_told() -> None:
    result = one("true-gradient", centers(ConstantWeights))
    assert result.skipped
    assert "what the loss detaches is constant" in result.message


def test_mining_by_chance_is_no_fault() -> None:
    class Sampled(NPairs):
        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            kept = torch.rand(len(labels)) < 0.8
            return super().forward(embeddings, labels) + 0.1 * embeddings[kept].square().sum()

    assert one("batch-order", pairs(Sampled)).skipped
    assert one("deterministic", pairs(Sampled)) == CheckResult("deterministic", True)


def test_random_state_and_threads_are_left_alone() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    check_loss("npairs")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_subjects_are_registered_names_first() -> None:
    assert resolve_subject("npairs") is LOSSES.get("npairs")
    assert resolve_subject("pml:NCALoss").argument == "NCALoss"
    with pytest.raises(MlbenchError, match="did you mean npairs"):
        resolve_subject("npair")


MODULE = """
import mlbench
from mlbench.interfaces import LossEntry
from mlbench.losses.npairs import NPairs

ENTRY = LossEntry(name="entry", target=NPairs, summary="", unit_length=False)

@mlbench.register_loss("contract-test-loss", unit_length=False)
def registered(num_classes, embedding_dim):
    return NPairs(num_classes, embedding_dim)

def plain(num_classes, embedding_dim):
    return NPairs(num_classes, embedding_dim)

NUMBER = 3
"""


def test_subjects_may_be_modules_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_contract_test.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "npairs.py").write_text("from my_contract_test import ENTRY", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [""])
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))

    assert resolve_subject("my_contract_test:ENTRY").name == "entry"
    assert resolve_subject("my_contract_test:registered").name == "contract-test-loss"
    assert resolve_subject("npairs:ENTRY").name == "entry"  # a module may be called like a loss
    plain = resolve_subject("my_contract_test:plain")
    assert plain == replace(LossEntry(name="", target=plain.target, summary=""), name=plain.name)
    for wrong, message in (
        ("my_contract_test:NUMBER", "neither a loss factory nor"),
        ("my_contract_test:nothing", "AttributeError"),
        ("no_such_module:x", "ModuleNotFoundError"),
    ):
        with pytest.raises(MlbenchError, match=message):
            resolve_subject(wrong)
