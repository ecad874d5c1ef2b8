"""A benchmark case: which modules of which model, adapted how, on how many tokens, and what is done with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from lora_ref.spec import LoraSpec

Mix = Literal["same", "different", "uniform", "zipf"]


class Mode(StrEnum):
    """What is timed."""

    FORWARD = "fwd"  # in training mode, with the graph recorded
    BACKWARD = "bwd"  # of a fresh forward, down to x
    STEP = "step"  # forward and backward; on a whole model also the loss and AdamW
    MERGE = "merge"
    LOAD = "load"  # the nth adapter from its files: the first onto a bare model, others beside the n - 1 that it has
    SWITCH = "switch"  # activate another of n adapters
    MIXED = "mixed"  # a forward of one batch whose rows are served by different adapters


TRAINING = (Mode.FORWARD, Mode.BACKWARD, Mode.STEP)


@dataclass(frozen=True)
class Case:
    """One subject of measurement. Every backend gets the same arrays.

    model, module: where the shape comes from: "llama-2-7b" and "q", "qkv", "mlp" or, for a whole model, "model".
    in_features, out_features: of the layer, of the first one in a group, 0 for a whole model.
    batch x seq = tokens, the M of the layer's products.
    n_adapters: how many there are, for Mode.LOAD (afterwards), Mode.SWITCH and Mode.MIXED.
    adapter_mix: how the rows of Mode.MIXED choose.
    """

    model: str
    module: str
    in_features: int
    out_features: int
    rank: int
    batch: int
    seq: int
    mode: Mode
    alpha: float = 32.0
    dropout: float = 0.0
    base_dtype: str = "float32"
    adapter_dtype: str = "float32"
    n_adapters: int = 1
    adapter_mix: Mix = "same"
    grad_ckpt: bool = False
    compile: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    @property
    def whole(self) -> bool:
        """A whole model, not a layer or a group of layers."""
        return self.module == "model"

    @property
    def single(self) -> bool:
        """One linear layer."""
        return self.module not in {"model", "qkv", "mlp"}

    @property
    def spec(self) -> LoraSpec:
        """Without targets: those follow from the module."""
        return LoraSpec(self.rank, self.alpha, dropout=self.dropout)

    @property
    def case_id(self) -> str:
        """Stable and readable; a history is kept under it."""
        shape = "" if self.whole else f" {self.in_features}x{self.out_features}"
        extras = [
            f"alpha{self.alpha:g}" if self.alpha != 32 else "",
            f"dropout{self.dropout:g}" if self.dropout else "",
            self.base_dtype if self.base_dtype == self.adapter_dtype else f"{self.base_dtype}+{self.adapter_dtype}",
            f"n{self.n_adapters}" if self.n_adapters > 1 or self.mode is Mode.SWITCH else "",
            self.adapter_mix if self.adapter_mix != "same" else "",
            "ckpt" if self.grad_ckpt else "",
            "compile" if self.compile else "",
        ]
        parts = [f"{self.model}/{self.module}{shape}", f"{self.batch}x{self.seq}", f"r{self.rank}", *extras, self.mode]
        return " ".join(part for part in parts if part)

    def as_row(self) -> dict[str, Any]:
        """The case's columns of a record."""
        return {"case_id": self.case_id, **asdict(self), "mode": self.mode.value, "tokens": self.tokens}
