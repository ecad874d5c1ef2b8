"""Initial values of the wrong kind, or none at all."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from conformance.backends.reference import INIT
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, EmbeddingDelta

_LAW, _AGAIN = ["init-distribution"], ["init-reproducible"]


def fan_in(delta: Delta) -> int:
    return delta.a[0].numel()


@mutant("embedding-init-swapped", killed_by=_LAW, thread="microsoft/LoRA#194, #155, #46", init={"embedding": "normal"})
class EmbeddingSwapped(EmbeddingDelta):
    """In embeddings A is zero and B is drawn, though the documentation says the reverse."""

    def reset(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.normal_(self.b)


@mutant("init-bound-without-root", killed_by=_LAW, init=INIT)
class WithoutRoot(Delta):
    """A is uniform up to 1/fan_in instead of its root."""

    def reset(self) -> None:
        nn.init.uniform_(self.a, -1 / fan_in(self), 1 / fan_in(self))
        nn.init.zeros_(self.b)


@mutant("init-from-fan-out", killed_by=_LAW, init=INIT)
class FromFanOut(Delta):
    """The bound comes from the number of outputs of A, which is r."""

    def reset(self) -> None:
        super().reset()
        bound = self.a.shape[0] ** -0.5
        nn.init.uniform_(self.a, -bound, bound)


@mutant("init-a-zero-in-kaiming", killed_by=_LAW, init=INIT)
class KaimingZero(Delta):
    """Kaiming's law is used with its default slope of 0 instead of √5, so that values are √6 times as large."""

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.a)
        nn.init.zeros_(self.b)


@mutant("init-xavier", killed_by=_LAW, init=INIT)
class Xavier(Delta):
    """A follows Xavier's law, in which the number of outputs has a share."""

    def reset(self) -> None:
        nn.init.xavier_uniform_(self.a)
        nn.init.zeros_(self.b)


@mutant("init-normal-of-same-variance", killed_by=_LAW, init={"linear": "kaiming_uniform_a5"})
class NormalOfSameVariance(Delta):
    """A is normal, with the variance of the uniform law."""

    def reset(self) -> None:
        nn.init.normal_(self.a, std=(3 * fan_in(self)) ** -0.5)
        nn.init.zeros_(self.b)


@mutant("init-two-percent-small", killed_by=_LAW, init={"linear": "kaiming_uniform_a5"})
class TwoPercentSmall(Delta):
    """The bound is a fiftieth too small."""

    def reset(self) -> None:
        super().reset()
        self.a.data.mul_(0.98)


@mutant("init-embedding-truncated", killed_by=_LAW, init={"embedding": "normal"})
class Truncated(EmbeddingDelta):
    """The normal law is cut off at one and a half standard deviations."""

    def reset(self) -> None:
        nn.init.trunc_normal_(self.a, a=-1.5, b=1.5)
        nn.init.zeros_(self.b)


@mutant("init-only-positive", killed_by=_LAW, init=INIT)
class OnlyPositive(Delta):
    """Values are drawn from 0 to the bound, and not from both sides of 0."""

    def reset(self) -> None:
        super().reset()
        self.a.data.abs_()


@mutant("init-equal-rows", killed_by=_LAW, init=INIT)
class EqualRows(Delta):
    """One row is drawn and repeated, so that the rank is 1."""

    def reset(self) -> None:
        super().reset()
        self.a.data.copy_(self.a.data[:1].expand_as(self.a.data))


@mutant("init-rows-beyond-eight-empty", killed_by=_LAW, init=INIT)
class RowsEmpty(Delta):
    """Only the first eight rows are drawn; the others stay zero."""

    def reset(self) -> None:
        super().reset()
        self.a.data[8:] = 0


@mutant("init-scaled-by-rank", killed_by=_LAW, init=INIT)
class ScaledByRank(Delta):
    """A is divided by the root of r, as if the scaling were made up for here."""

    def reset(self) -> None:
        super().reset()
        self.a.data.div_(math.sqrt(self.spec.r))


@mutant("init-b-almost-zero", killed_by=_LAW, init=INIT)
class AlmostZero(Delta):
    """B is not zero but tiny."""

    def reset(self) -> None:
        super().reset()
        nn.init.normal_(self.b, std=1e-6)


@mutant("init-one-seed-for-all", killed_by=[*_LAW, *_AGAIN], init=INIT)
class OneSeed(Delta):
    """Initialisation sets the seed itself, so that every adapter starts alike."""

    def reset(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().reset()


@mutant("init-from-another-generator", killed_by=_AGAIN, init=INIT)
class AnotherGenerator(Delta):
    """A is drawn from a generator that torch's seed does not reach."""

    def reset(self) -> None:
        super().reset()
        bound = fan_in(self) ** -0.5
        values = np.random.default_rng().uniform(-bound, bound, tuple(self.a.shape))
        self.a.data.copy_(torch.from_numpy(values))


@mutant("init-from-hash", killed_by=_AGAIN, init=INIT)
class FromAddress(Delta):
    """The seed is mixed with the module's address."""

    def reset(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(id(self) ^ torch.initial_seed())
            super().reset()


@mutant("meta-init-garbage", killed_by=_AGAIN, thread="saforem2/ezpz#207")
class MetaGarbage(Delta):
    """A and B that were built on the meta device are never given values."""

    def reset_parameters(self) -> None:
        return


@mutant("meta-init-forgets-a", killed_by=_AGAIN)
class MetaForgetsA(Delta):
    """Materialising fills B with zeros and leaves A as memory was."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.b)


@mutant("meta-init-forgets-b", killed_by=_AGAIN)
class MetaForgetsB(Delta):
    """Materialising draws A, and relies on memory that was allocated as zeros for B."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))


@mutant("meta-init-all-zero", killed_by=_AGAIN)
class MetaAllZero(Delta):
    """Materialising zeroes A as well as B: nothing can be learnt."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.b)


@mutant("meta-init-by-adding", killed_by=_AGAIN)
class MetaByAdding(Delta):
    """Materialising adds the initial values to what memory holds."""

    def reset_parameters(self) -> None:
        before = self.a.data.clone(), self.b.data.clone()
        self.reset()
        self.a.data.add_(before[0])
        self.b.data.add_(before[1])


@mutant("meta-init-other-law", killed_by=_LAW, init=INIT)
class MetaOtherLaw(Delta):
    """Materialising draws A as torch draws a normal matrix, not by the documented law."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.a, std=0.02)
        nn.init.zeros_(self.b)


@mutant("meta-init-both-drawn", killed_by=_AGAIN)
class MetaBothDrawn(Delta):
    """Materialising draws every parameter alike, so that the fresh adapter is not the base."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.a)
        nn.init.normal_(self.b)
