"""What a LoRA adapter is asked to be: rank, alpha, scaling law, dropout, targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lora_ref.errors import LoraError
from lora_ref.targets import matches

Init = Literal["default", "pissa", "olora"]


@dataclass(frozen=True)
class LoraSpec:
    """Hyper-parameters of one adapter, as in "LoRA" (Hu et al., 2021, arXiv:2106.09685), section 4.1.

    ``rslora`` selects the rank-stabilised law alpha/sqrt(r) (Kalajdzievski, 2023, arXiv:2312.03732).
    ``dropout`` acts on the input of A only. ``targets`` and the keys of both patterns are dotted path
    suffixes: ``q_proj`` names ``layers.0.q_proj`` and never ``my_q_proj``; a pattern overrides r or alpha.
    ``dora`` adds a trained magnitude for each output (see ``lora_ref.dora``). ``init`` names a residual initialisation:
    A and B come from W, and the delta is what they change from there on (see ``lora_ref.variants``).

    Raises:
        LoraError: r < 1, alpha not finite or not positive, dropout outside [0, 1), an initialisation of another name.
    """

    r: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    dora: bool = False
    init: Init = "default"

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise LoraError(f"r must be a whole number of at least 1, got {self.r!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise LoraError(f"alpha must be finite and positive, got {self.alpha!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise LoraError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.init not in get_args(Init):
            raise LoraError(f"init must be default, pissa or olora, got {self.init!r}")
        for key in (*self.rank_pattern, *self.alpha_pattern):
            self._with(key)  # an override is held to the same rules as the value that it overrides

    @property
    def scaling(self) -> float:
        """s in W' = W + s·B·A: alpha/r, or alpha/sqrt(r) for rsLoRA."""
        return self.alpha / math.sqrt(self.r) if self.rslora else self.alpha / self.r

    def at(self, path: str) -> LoraSpec:
        """The spec of the module at ``path``: the longest matching key of each pattern wins."""
        rank = _longest(self.rank_pattern, path)
        alpha = _longest(self.alpha_pattern, path)
        return replace(
            self,
            r=self.r if rank is None else self.rank_pattern[rank],
            alpha=self.alpha if alpha is None else self.alpha_pattern[alpha],
            rank_pattern={},
            alpha_pattern={},
        )

    def _with(self, key: str) -> LoraSpec:
        r, alpha = self.rank_pattern.get(key, self.r), self.alpha_pattern.get(key, self.alpha)
        return replace(self, r=r, alpha=alpha, rank_pattern={}, alpha_pattern={})


def _longest(pattern: Mapping[str, object], path: str) -> str | None:
    return max((key for key in pattern if matches(key, path)), key=len, default=None)
