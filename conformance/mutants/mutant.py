"""What a mutant is: a backend with one defect, modelled on a real bug, and the invariants that must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from conformance.backends.reference import ReferenceLayer
from conformance.backends.reference import backend as reference
from conformance.contract import Backend, Feature, Manifest, Model, Operator, Store
from conformance.torch_layer import TorchLayer

MUTANTS: dict[str, Mutant] = {}


@dataclass(frozen=True)
class Mutant:
    """``defect`` is one sentence; ``thread`` is where the bug was seen; ``killed_by`` names invariants by id."""

    id: str
    defect: str
    thread: str
    killed_by: tuple[str, ...]
    backend: Backend


def mutant(
    id: str,  # noqa: A002 - the field's word
    *,
    killed_by: Iterable[str],
    thread: str = "",
    without: Iterable[Feature] = (),
    **manifest: Any,
) -> Callable[[type[Any]], type[Any]]:
    """Register the decorated class, a broken ``TorchLayer``, ``Operator``, ``Model`` or ``Store``.

    It claims all that the reference claims, less ``without``; a broken Store keeps the reference's Model. Further
    arguments go into its manifest.
    """

    def register(broken: type[Any]) -> type[Any]:
        made = broken()
        features = frozenset(Feature) - frozenset(without)
        fields = {"dtypes": ("float32",), "features": features, **manifest}
        facets: dict[str, TorchLayer | Operator | Model | Store] = {}
        if isinstance(made, TorchLayer):
            facets["layer"] = made
        elif hasattr(made, "vjp"):
            facets["operator"] = made
        elif hasattr(made, "dump"):
            facets |= {"model": reference.model, "store": made}  # type: ignore[dict-item]
        else:
            facets["model"] = made
        backend = Backend(Manifest(name=f"mutant:{id}", version="0", **fields), **facets)  # type: ignore[arg-type]
        defect = " ".join((broken.__doc__ or "").split())
        assert defect and id not in MUTANTS
        MUTANTS[id] = Mutant(id, defect, thread, tuple(killed_by), backend)
        return broken

    return register


__all__ = ["MUTANTS", "Mutant", "ReferenceLayer", "mutant"]
