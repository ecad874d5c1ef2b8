"""LoRA around one module: a frozen base, and beside it any number of named branches, some of them active.

y = base(x) + Σ s·B(A(x)) over the active ones, which is base with W' = W + Σ ΔW ("LoRA", arXiv:2106.09685, eq. 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_ref.delta import Delta, is_quantised, make_delta, read_weight, weight_of
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec


class Adapters(nn.ModuleDict):
    """The branches of one module by name, which of them are active, and whether they are applied at all.

    An adapter trains while it is active and was declared trainable. The first one added becomes active.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.specs: dict[str, LoraSpec] = {}  # as given, with patterns; each Delta has its own module's
        self.trainable: dict[str, bool] = {}

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        self.check_new(name)
        self[name] = delta.train(self.training)
        self.specs[name], self.trainable[name] = spec, trainable
        if len(self) == 1:
            self.activate(name)
        else:
            delta.requires_grad_(requires_grad=False)

    def check_new(self, name: str) -> None:
        if name in self:
            raise LoraError(f"there is an adapter {name!r} already; delete it first or choose another name")
        if not name or "." in name or hasattr(self, name):
            raise LoraError(f"an adapter cannot be called {name!r}: the name becomes part of a dotted path")

    def check_known(self, *names: str) -> None:
        for name in names:
            if name not in self:
                raise LoraError(f"there is no adapter {name!r}; there are: {', '.join(self) or 'none'}")

    def delta(self, name: str) -> Delta:
        self.check_known(name)
        delta = self[name]
        assert isinstance(delta, Delta)
        return delta

    def delete(self, name: str) -> None:
        self.check_known(name)
        self.active = tuple(other for other in self.active if other != name)
        del self[name], self.specs[name], self.trainable[name]

    def activate(self, *names: str) -> None:
        """Make these, and no others, the active ones: their deltas add up. No name: none is active."""
        self.check_known(*names)
        self.active = tuple(dict.fromkeys(names))
        for name in self:
            self[name].requires_grad_(requires_grad=name in self.active and self.trainable[name])

    def set_scale(self, name: str, factor: float) -> None:
        """Multiply s by ``factor`` from now on, whatever it was multiplied by before; 1 gives alpha's law again."""
        self.delta(name).factor = float(factor)

    def applied(self) -> tuple[str, ...]:
        return self.active if self.enabled else ()

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        """out + Σ delta(x), summed in float32 or wider and rounded once to the dtype of ``out``.

        ``plain`` is the base's own output, where ``out`` is that of merged weights.
        """
        total = out.to(torch.promote_types(out.dtype, torch.float32))
        for name in names:  # in the shape of out; the wider dtype of the two
            total = total + self.delta(name).change(x, out if plain is None else plain)
        return total.to(out.dtype)


def outer_modules(module: nn.Module) -> dict[str, nn.Module]:
    """As ``named_modules``, but nothing inside ``Adapters``: its cost does not grow with their number."""
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def walk(path: str, part: nn.Module) -> None:
        if part in seen:
            return
        seen.add(part)
        found[path] = part
        if not isinstance(part, Adapters):
            for name, child in part.named_children():
                walk(f"{path}.{name}" if path else name, child)

    walk("", module)
    return found


class LoraLayer(nn.Module):
    """A frozen ``base`` and its ``adapters``; for every kind of base that ``make_delta`` knows.

    Merging writes nothing into the base. W' = W + Σ ΔW is formed in float32 or wider, rounded once, and kept in a
    buffer that no state dict holds, and forward runs the base with it. So unmerging is exact however often it is done,
    a weight that is tied to another module never moves, and what is saved are W, A and B, merged or not.
    While merged, whatever would make W' wrong is refused: training, changing A, B or W, deleting or scaling.
    """

    base: nn.Module
    adapters: Adapters
    merged_weight: Tensor | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.adapters = Adapters()
        self.merged: tuple[str, ...] = ()
        self.register_buffer("merged_weight", None, persistent=False)
        self._stamp: tuple[object, ...] | None = None
        self.train(base.training)

    # -- adapters ---------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        spec: LoraSpec,
        *,
        trainable: bool = True,
        dtype: torch.dtype | None = None,
        parts: Sequence[int] | None = None,
        enabled: Sequence[bool] | None = None,
    ) -> None:
        self.adapters.check_new(name)
        delta = make_delta(self.base, spec.at(""), dtype=dtype, parts=parts, enabled=enabled)
        self.adapters.put(name, delta, spec, trainable=trainable)

    def delete(self, name: str) -> None:
        self.check_unmerged(name)
        self.adapters.delete(name)

    def activate(self, *names: str) -> None:
        self.check_unmerged(*set(self.merged) - set(names))
        self.adapters.activate(*names)

    def set_scale(self, name: str, factor: float) -> None:
        self.check_unmerged(name)
        self.adapters.set_scale(name, factor)

    def enable(self) -> None:
        self.adapters.enabled = True

    def disable(self) -> None:
        """Compute what the base computes, exactly, merged or not."""
        self.adapters.enabled = False

    def check_unmerged(self, *names: str) -> None:
        for name in names:
            if name in self.merged:
                raise LoraError(f"adapter {name!r} is merged; unmerge first")

    # -- forward ----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        names = self.adapters.applied()
        if not (names and self.merged):
            return self.adapters.add_to(self.base(x), x, names) if names else self.base(x)
        if self.training and torch.is_grad_enabled():
            raise LoraError("a merged adapter would not train; unmerge first, or call eval()")
        if not torch.compiler.is_compiling() and self._stamp != self._fingerprint():
            raise LoraError("A, B or the base weight changed since the merge; unmerge, then merge again")
        assert self.merged_weight is not None
        out = functional_call(self.base, {"weight": self.merged_weight}, (x,))
        rest = [name for name in names if name not in self.merged]
        plain = self.base(x) if any(self.adapters.delta(name).reads_base for name in rest) else None
        return self.adapters.add_to(out, x, rest, plain) if rest else out

    # -- weights ----------------------------------------------------------------------------------------------------

    def effective_weight(self, *names: str) -> Tensor:
        """W' = W + Σ ΔW over ``names``, by default those applied, rounded once to W's dtype; differentiable in A, B."""
        total = w = read_weight(self.base)
        for name in names or self.adapters.applied():
            total = total + self.adapters.delta(name).weight()  # W's shape, float32 or wider
        return total.to(w.dtype)

    @property
    def weight(self) -> Tensor:
        """W', for callers that read a weight instead of calling the module (no dropout can act there)."""
        return self.effective_weight()

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.base, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def merge(self, *names: str) -> None:
        """Merge these active adapters, by default all; one that is merged already stays so.

        Raises:
            LoraError: unknown or inactive name, or W' not finite. Nothing is changed then.
        """
        self.commit(self.plan_merge(*names))

    def plan_merge(self, *names: str) -> tuple[tuple[str, ...], Tensor | None]:
        """What would be merged, and the W' of it, for a caller that merges all of many layers or none of them."""
        self.adapters.check_known(*names)
        active = self.adapters.active
        for name in names:
            if name not in active:
                raise LoraError(f"adapter {name!r} is not active, and merging must not change what is computed")
        wanted = tuple(name for name in active if name in self.merged or not names or name in names)
        if wanted and is_quantised(self.base):
            raise LoraError("merging would round W' to the few bits of this base and lose the delta; export instead")
        return wanted, self.merged_weight if wanted == self.merged else self._finite_weight(wanted)

    def commit(self, plan: tuple[tuple[str, ...], Tensor | None]) -> None:
        if plan[0] != self.merged:
            self.merged, self.merged_weight = plan
            self._stamp = self._fingerprint()

    def unmerge(self) -> None:
        self.merged, self.merged_weight, self._stamp = (), None, None

    def export(self) -> nn.Module:
        """A copy of the base with W' in place of W: a plain module that shares nothing with this one.

        A quantised base becomes an nn.Linear, as W' has no place in its few bits.
        """
        names = self.adapters.applied()
        weight = self._finite_weight(names)
        plain: nn.Module
        if is_quantised(self.base):
            out, in_ = weight.shape
            plain = nn.Linear(in_, out, bias=False, device="meta")
            if self.bias is not None:
                plain.register_parameter("bias", nn.Parameter(self.bias.detach().clone(), requires_grad=False))
        else:
            plain = copy.deepcopy(self.base)
        plain.weight = nn.Parameter(weight.clone(), requires_grad=False)
        return plain

    def _finite_weight(self, names: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            weight = self.effective_weight(*names) if names else read_weight(self.base).detach()
        if not weight.is_meta and not _finite(weight):
            raise LoraError(f"merging {', '.join(names)} would give a weight that is not finite in {weight.dtype}")
        return weight

    # -- is W' still what A, B and W say? ---------------------------------------------------------------------------

    def _fingerprint(self) -> tuple[object, ...]:
        """Changes whenever a parameter of a branch, s or W is written to or replaced."""
        deltas = [self.adapters.delta(name) for name in self.merged]
        tensors = [weight_of(self.base), *(factor for delta in deltas for factor in delta.parameters())]
        writes = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]  # noqa: SLF001 (counts writes)
        return (*writes, *(delta.scaling for delta in deltas))

    def __getstate__(self) -> dict[str, Any]:
        fresh = self._stamp == self._fingerprint() if self.merged else None
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_stamp": fresh}  # addresses mean nothing to a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._stamp = self._fingerprint() if state["_stamp"] else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (as in torch)
        """A move to another device keeps W' right; a change of dtype does not, as W' would be rounded twice."""
        fresh, dtype = self.merged and self._stamp == self._fingerprint(), getattr(self.merged_weight, "dtype", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if fresh and weight_of(self.base).dtype == dtype:
            self._stamp = self._fingerprint()
        return self


def _finite(weight: Tensor) -> bool:
    """Whether all entries are: by their extremes, which NaN passes through, in a tenth of the time of ``isfinite``."""
    return not weight.numel() or bool(torch.stack(torch.aminmax(weight)).isfinite().all())
