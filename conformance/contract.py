"""The contract: the one file that the author of a backend reads.

A backend is an implementation under test, seen through an adapter of a few lines. Offer as much as you have:

- ``Operator``: one pure function with its gradients. For kernels, and for frameworks other than torch.
- ``Layer``: one adapted layer that is trained, merged, scaled and switched.
- ``Model``: LoRA on chosen modules of a whole torch model.
- ``Store``: adapter files.
- ``Batch``: rows of one batch served by different adapters.

Arrays cross this border as read-only numpy arrays (bfloat16 through ``ml_dtypes``), in the shapes that the geometry
gives. They may be strided, broadcast or empty. Give back arrays of the dtype that the implementation produced: the
dtype is judged too. Raise any exception to refuse a request; never give a wrong answer instead.
``conformance.torch_layer`` and ``conformance.torch_model`` do most of this for torch implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_ref.dora import DoraDropout
from lora_ref.geometry import Geometry
from lora_ref.oracle import Numerics
from lora_ref.spec import LoraSpec

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


class Facet(StrEnum):
    """How much of the contract a backend offers."""

    OPERATOR = "operator"
    LAYER = "layer"
    MODEL = "model"
    STORE = "store"
    BATCH = "batch"


class Feature(StrEnum):
    """Optional capabilities. What is declared is judged; what is not is reported as unsupported."""

    TRANSPOSED = "transposed"  # base weight stored (in, out): GPT-2's Conv1D, "fan_in_fan_out"
    EMBEDDING = "embedding"
    CONV = "conv"  # one to three dimensions, stride, padding, dilation, padding modes
    GROUPED_CONV = "grouped_conv"
    FUSED = "fused"  # several projections stacked in one weight, adapted part by part
    EXPERTS = "experts"  # a stack of experts in one weight (E, out, in), each row of x served by its own
    UNEQUAL_PARTS = "unequal_parts"  # fused parts of different sizes: grouped-query attention
    BIAS = "bias"  # base layers with a bias
    MIXED_DTYPE = "mixed_dtype"  # float32 adapters over a base of lower precision
    RSLORA = "rslora"
    DROPOUT = "dropout"
    INIT = "init"  # makes its own initial A and B
    MERGE = "merge"
    UNMERGE = "unmerge"
    DISABLE = "disable"
    MULTI_ADAPTER = "multi_adapter"
    DELETE = "delete"
    RUNTIME_SCALE = "runtime_scale"
    COMBINE = "combine"  # adds a weighted combination of adapters as a new adapter
    COPY = "copy"  # deepcopy and pickle
    META = "meta"  # built on torch's meta device and materialised
    DORA = "dora"
    RESIDUAL_INIT = "residual_init"  # PiSSA, OLoRA: A and B come from W, and W keeps the rest
    QUANTISED = "quantised"  # a base whose weight is stored in few bits
    CHECKPOINT = "checkpoint"  # activation checkpointing
    COMPILE = "compile"  # torch.compile
    AUTOCAST = "autocast"
    DISTRIBUTED = "distributed"  # data-parallel and sharded training
    TRAIN_STEP = "train_step"  # has trainable state that an optimiser can step
    PATTERNS = "patterns"  # rank_pattern and alpha_pattern
    TIED = "tied"  # adapts a head whose weight is tied to the embedding
    SAVED_BYTES = "saved_bytes"  # can tell what is kept between forward and backward
    PEFT_LAYOUT = "peft_layout"  # reads and writes adapter_config.json + adapter_model.safetensors
    LOAD_BESIDE = "load_beside"  # loads further adapter files into a model that has adapters


GapKind = Literal["notimpl", "notyet", "never"]


@dataclass(frozen=True)
class Gap:
    """A declared invariant that the backend is known to break. It is run all the same, and red once it passes.

    invariant: id of the invariant.
    kind: "notimpl" (absent upstream), "notyet" (to be fixed), "never" (a decision of theirs).
    reason: one sentence on what happens; shown in every report.
    case: fields of a pinned case that must show it.
    where: the cases concerned, field by field (all must fit); every other case is judged as usual. Empty: all cases.
    upstream: where it is discussed, if known.
    raises: name of the exception that the backend raises, or None where it gives a wrong result.
    facets, dtypes: where it shows; empty for everywhere.
    """

    invariant: str
    kind: GapKind
    reason: str
    case: Mapping[str, Any]
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    upstream: str = ""
    raises: str | None = None
    facets: tuple[Facet, ...] = ()
    dtypes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.reason or self.kind not in {"notimpl", "notyet", "never"}:
            raise ValueError(f"the gap in {self.invariant!r} needs a reason and a kind: notimpl, notyet or never")


@dataclass(frozen=True)
class Manifest:
    """What a backend claims about itself.

    dtypes: dtypes of the base weights that it serves on a CPU ("float32", "bfloat16", "float16").
    numerics: where it rounds (see ``lora_ref.oracle.Numerics``); the error bounds follow from it.
    fused_numerics: the same for fused layers, where they differ.
    grouped_factors: the shapes of A and B in grouped convolutions (see ``lora_ref.convolution.Conv``).
    zero_factor: per kind of layer, the factor that starts at zero where that is not "b".
    dora_dropout: what dropout acts on in DoRA (see ``lora_ref.dora``).
    init: per kind of layer, the law that the other factor is drawn from (see ``conformance.laws``).
    requires: pip requirements, shown when the backend cannot be imported.
    """

    name: str
    version: str
    dtypes: tuple[str, ...] = ("float32",)
    features: frozenset[Feature] = frozenset()
    gaps: tuple[Gap, ...] = ()
    numerics: Numerics = field(default_factory=Numerics)
    fused_numerics: Numerics | None = None
    grouped_factors: Literal["flattened", "block"] = "flattened"
    zero_factor: Mapping[str, str] = field(default_factory=dict)
    dora_dropout: DoraDropout = "delta"
    init: Mapping[str, str] = field(default_factory=dict)
    issues: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """The arrays of one layer, in the shapes of its geometry. ``a`` and ``b`` are None where the backend initialises.

    adapter_dtype names the dtype of A and B, also where they are None; seed is for what the backend draws then.
    m (out,) is DoRA's magnitude, None without DoRA and where the backend initialises it. With ``bits`` (4 or 8) the
    base holds w quantised, as in ``conformance.quantiser``; ``conformance.torch_quantised`` is that base in torch.
    """

    geometry: Geometry
    w: Array
    bias: Array | None
    a: Array | None
    b: Array | None
    adapter_dtype: str
    seed: int = 0
    m: Array | None = None
    bits: int = 0


@dataclass(frozen=True)
class Grads:
    """The output, and the gradients of sum(y * dy). ``base`` holds any gradient that reached a base tensor, by name."""

    y: Array
    dx: Array | None
    da: Array | None
    db: Array | None
    base: Mapping[str, Array] = field(default_factory=dict)
    dm: Array | None = None  # DORA


@dataclass(frozen=True)
class Tensor:
    value: Array
    trainable: bool


class How(StrEnum):
    """The way in which a forward and its backward are run; every way must give the plain one's result."""

    PLAIN = "plain"
    COMPILED = "compiled"  # COMPILE
    CHECKPOINTED = "checkpointed"  # CHECKPOINT, non-reentrant
    REENTRANT = "reentrant"  # CHECKPOINT, the older mode: x itself must ask for gradients
    AUTOCAST = "autocast"  # AUTOCAST, to bfloat16


class Operator(Protocol):
    def vjp(self, spec: LoraSpec, weights: Weights, x: Array, dy: Array) -> Grads: ...


class Saving(Operator, Protocol):  # SAVED_BYTES
    def saved_bytes(self, spec: LoraSpec, weights: Weights, x: Array) -> int:
        """As ``Handle.saved_bytes``; nothing of the weights counts."""


class Layer(Protocol):
    def attach(self, spec: LoraSpec, weights: Weights) -> Handle:
        """A fresh adapted layer with one active, trainable adapter named "default"."""

    def materialise(self, spec: LoraSpec, weights: Weights) -> Handle:  # META
        """The same, built on the meta device: its memory, which held NaN, is filled in as the library documents."""


class Handle(Protocol):
    """One adapted layer. Each method beyond the first three is needed only for the feature named beside it."""

    def forward(self, x: Array, *, train: bool = False, seed: int = 0) -> Array:
        """y. ``train`` sets the mode as a user would, on the parent; ``seed`` seeds what dropout draws."""

    def vjp(self, x: Array, dy: Array, *, train: bool = False, seed: int = 0, how: How = How.PLAIN) -> Grads: ...

    def compilations(self) -> int:  # COMPILE
        """How many graphs have been compiled so far for the calls that asked for How.COMPILED."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All state. Factors are named "a:<adapter>" and "b:<adapter>", the base "weight" and "bias".

        A DoRA adapter's magnitude is "m:<adapter>".
        """

    def write(self, a: Array, b: Array, adapter: str = "default", m: Array | None = None) -> None:
        """Copy new values into the live A and B (and m, if given), as an optimiser would."""

    def load(self, a: Array, b: Array, adapter: str = "default") -> None:  # TRAIN_STEP
        """Put new tensors in the place of A and B, as a state dict that is assigned does."""

    def step(self, x: Array, dy: Array, *, lr: float, weight_decay: float, train: bool = True) -> None:  # TRAIN_STEP
        """One SGD step of sum(y * dy) over all trainable state; the optimiser lives as long as the handle."""

    def merge(self) -> None: ...  # MERGE

    def unmerge(self) -> None: ...  # UNMERGE

    def effective_weight(self) -> Array:  # MERGE
        """The base weight as forward uses it now: merged while merged."""

    def enable(self, on: bool) -> None: ...  # DISABLE  # noqa: FBT001

    def add(self, adapter: str, spec: LoraSpec, a: Array, b: Array) -> None:  # MULTI_ADAPTER
        """Add a second adapter; which adapters are active does not change."""

    def activate(self, *adapters: str) -> None: ...  # MULTI_ADAPTER

    def delete(self, adapter: str) -> None: ...  # DELETE

    def set_scale(self, factor: float, adapter: str = "default") -> None:  # RUNTIME_SCALE
        """The adapter's delta is now factor times what its spec says; 1 restores it."""

    def combine(self, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:  # COMBINE
        """Add an adapter whose delta is the weighted sum of those that others have now; it is not yet active."""

    def copy(self, *, pickled: bool) -> Handle: ...  # COPY

    def saved_bytes(self, x: Array, *, train: bool = False) -> int:  # SAVED_BYTES
        """Bytes kept for the backward of one forward: each memory once, without parameters and base weights."""


class Model(Protocol):
    def attach(self, module: torch.nn.Module, spec: LoraSpec) -> ModelHandle:
        """Adapt the modules that ``spec.targets`` names, in place where the library does so.

        For DISTRIBUTED this object is pickled and sent to two other processes: its class must be importable there.
        """


class ModelHandle(Protocol):
    """An adapted torch model. Paths are those of the modules before they were adapted."""

    @property
    def module(self) -> torch.nn.Module:
        """What a user calls and trains; for CHECKPOINT it has, or passes on, transformers' methods of its model."""

    def sites(self) -> Mapping[str, torch.nn.Module]:
        """Each adapted path, and the module whose output carries the delta."""

    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        """The live parameters A (r, in) and B (out, r) of a linear site, or views of them in these shapes."""

    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]:
        """The rank and the scaling that the implementation itself uses there."""

    def base_tensors(self) -> Mapping[str, torch.Tensor]:
        """The frozen tensors, named as in the model before it was adapted."""

    def add(self, adapter: str, spec: LoraSpec) -> None: ...  # MULTI_ADAPTER

    def activate(self, *adapters: str) -> None: ...  # MULTI_ADAPTER

    def delete(self, adapter: str) -> None: ...  # DELETE

    def enable(self, on: bool) -> None: ...  # DISABLE  # noqa: FBT001

    def merge(self) -> None: ...  # MERGE

    def unmerge(self) -> None: ...  # UNMERGE

    def weight(self, path: str) -> torch.Tensor:  # MERGE
        """The weight at a site as forward uses it now."""

    def copy(self, *, pickled: bool) -> ModelHandle: ...  # COPY


class Store(Protocol):
    def dump(self, handle: ModelHandle, folder: Path) -> None:
        """Save the adapter "default" into an empty folder."""

    def load(self, module: torch.nn.Module, folder: Path) -> ModelHandle:
        """Attach the saved adapter to a fresh base model; raise where the files do not fit exactly."""

    def add(self, handle: ModelHandle, folder: Path, adapter: str) -> None:  # LOAD_BESIDE
        """Load the saved adapter beside those that the model has, under this name; it is not yet active.

        Nothing else changes: no other adapter, no base tensor, not what is active, enabled, merged or in training mode.
        Raise where the files do not fit exactly, and leave the model as it was. A name that is taken may be refused, or
        its adapter replaced whole. While adapters are merged, loading may be refused.
        """


class Batch(Protocol):
    def forward(
        self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]], x: Array, index: Sequence[int]
    ) -> Array:
        """Row i of y (rows, out) from row i of x (rows, in) with the A, B of ``adapters[index[i]]``; -1: none.

        ``weights.a`` and ``weights.b`` are None. Each adapter has the rank of its own A, and the scaling that the
        spec's alpha and law give for that rank. An index that names no adapter must be refused.
        """


@dataclass(frozen=True)
class Backend:
    """What ``--lora-backend package.module:object`` must name."""

    manifest: Manifest
    operator: Operator | None = None
    layer: Layer | None = None
    model: Model | None = None
    store: Store | None = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if not self.facets:
            raise ValueError(f"backend {self.manifest.name!r} offers none of: {', '.join(Facet)}")
        if self.store is not None and self.model is None:
            raise ValueError(f"backend {self.manifest.name!r} offers store without model, whose handles a store saves")

    @property
    def facets(self) -> tuple[Facet, ...]:
        return tuple(facet for facet in Facet if getattr(self, facet.value) is not None)


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype's name; bfloat16 comes from ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
