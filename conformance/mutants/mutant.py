"""What a mutant is: a backend with one defect, modelled on a real bug, and the invariants that must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from conformance.backends.reference import backend as reference
from conformance.contract import Backend, Facet, Feature, Manifest
from conformance.mutants.parts import BrokenLayer, BrokenModel, BrokenStore, PartInModel
from conformance.torch_layer import TorchLayer
from conformance.torch_operator import TorchOperator
from lora_ref.model import Adapted

MUTANTS: dict[str, Mutant] = {}
OF_A_FUNCTION = frozenset({Feature.BIAS, Feature.RSLORA})
T = TypeVar("T")


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
    on: Facet = Facet.LAYER,
    **manifest: Any,
) -> Callable[[T], T]:
    """Register the decorated class or function.

    It is a broken part of the reference: ``LoraLayer``, ``Adapters``, a kind of ``Delta`` (``on`` says whether a layer
    or a whole model is made of it), ``LoraModel`` or ``HookedModel``, a ``BrokenStore``; or a broken ``ReferenceLayer``
    or operator function. It claims all that the reference claims; further arguments go into its manifest.
    """

    def register(broken: T) -> T:
        facets = _facets(broken, on)
        features = OF_A_FUNCTION if "operator" in facets else frozenset(Feature)
        fields = {"dtypes": ("float32",), "features": features, **manifest}
        defect = " ".join((broken.__doc__ or "").split())
        if not defect or id in MUTANTS:
            raise ValueError(f"mutant {id!r} needs a docstring that states its defect, and an id of its own")
        backend = Backend(Manifest(name=f"mutant:{id}", version="0", **fields), **facets)
        MUTANTS[id] = Mutant(id, defect, thread, tuple(killed_by), backend)
        return broken

    return register


def _facets(broken: Any, on: Facet) -> dict[str, Any]:
    if not isinstance(broken, type):
        return {"operator": TorchOperator(broken)}
    if issubclass(broken, Adapted):
        return {"model": BrokenModel(broken)}
    if issubclass(broken, nn.Module):
        return {"model": PartInModel(broken)} if on is Facet.MODEL else {"layer": BrokenLayer(broken)}
    if issubclass(broken, BrokenStore):
        return {"model": reference.model, "store": broken()}
    if issubclass(broken, TorchLayer):
        return {"layer": broken()}
    return {"operator": broken()}
