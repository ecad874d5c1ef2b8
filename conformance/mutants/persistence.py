"""Adapter files that lose something on the way out or in."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import BrokenStore, Files, ReferenceHandle, ReferenceModel
from conformance.peft_layout import PREFIX, read_adapter
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec

BOTH = ["roundtrip", "interop"]
Tensors = dict[str, Tensor]


class Lenient(BrokenStore):
    """Loads what fits, as ``fits`` decides, and leaves the rest of A and B at their initial values."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        raise NotImplementedError

    def read(self, files: Files) -> None:
        files.tensors = self.fits(_fresh(files), files.tensors)


def _fresh(files: Files) -> Tensors:
    """A fresh adapter's tensors by the names that a file has for them; the model stays as it was."""
    config = files.config
    spec = LoraSpec(
        r=config["r"],
        alpha=config["lora_alpha"],
        targets=tuple(config["target_modules"]),
        rank_pattern=config["rank_pattern"],
    )
    handle = ReferenceModel().attach(copy.deepcopy(files.module), spec)
    return {
        f"{PREFIX}{path}.lora_{name}.weight": factor.detach().clone()
        for path in handle.sites()
        for name, factor in zip("AB", handle.factors(path), strict=True)
    }


@mutant("load-result-discarded", killed_by=BOTH, thread="alvdansen/signet-trainer#105, huggingface/transformers#46766")
class LoadResultDiscarded(Lenient):
    """The file is read and its tensors are dropped: a fresh adapter is handed back."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        return wanted if wanted.keys() == found.keys() else found


@mutant("prefix-mismatch-silent", killed_by=["load-strict"], thread="vllm-project/vllm#34186, #48019")
class PrefixMismatchSilent(Lenient):
    """A file of which no tensor fits any module loads as a fresh adapter."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        return found if wanted.keys() & found.keys() else wanted


@mutant("missing-tensor-silent", killed_by=["load-strict"], thread="huggingface/peft#2885")
class MissingSilent(Lenient):
    """A tensor that the file lacks keeps its initial value."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        return wanted | found if wanted.keys() & found.keys() else found


@mutant("foreign-tensor-silent", killed_by=["load-strict"])
class ForeignSilent(Lenient):
    """A tensor that no module asks for is left out without a word."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        return {key: tensor for key, tensor in found.items() if key in wanted} or found


@mutant("wrong-shape-silent", killed_by=["load-strict"])
class WrongShapeSilent(Lenient):
    """A tensor of another shape is skipped."""

    def fits(self, wanted: Tensors, found: Tensors) -> Tensors:
        skip = {key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape}
        return found | {key: wanted[key] for key in skip}


@mutant("damaged-file-logged-only", killed_by=["load-strict"])
class DamagedLoggedOnly(BrokenStore):
    """An error while reading is caught, and a model with a fresh adapter is handed back."""

    def load(self, module: nn.Module, folder: Path) -> ReferenceHandle:
        try:
            return super().load(module, folder)
        except (SafetensorError, LoraError):
            return ReferenceModel().attach(module, LoraSpec(r=1, alpha=1.0, targets=(_some_linear(module),)))


def _some_linear(module: nn.Module) -> str:
    found: list[str] = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    return found[0]


@mutant("zero3-empty-save", killed_by=BOTH, thread="huggingface/trl#4416, huggingface/peft#2892")
class EmptySave(BrokenStore):
    """Placeholders without elements are saved in place of the tensors."""

    def written(self, files: Files) -> None:
        files.tensors.update({key: tensor.new_empty(0) for key, tensor in files.tensors.items()})


@mutant("initial-values-saved", killed_by=BOTH)
class InitialValuesSaved(BrokenStore):
    """What is saved is a copy from before training: every B is still zero."""

    def written(self, files: Files) -> None:
        files.tensors.update(
            {key: torch.zeros_like(tensor) for key, tensor in files.tensors.items() if "lora_B" in key}
        )


@mutant("last-layer-not-saved", killed_by=BOTH)
class LastLayerNotSaved(BrokenStore):
    """The last adapted module is missing in the file, and keeps its initial values when that is loaded."""

    def written(self, files: Files) -> None:
        last = max(files.tensors).rsplit(".lora_", 1)[0]
        for key in [key for key in files.tensors if key.startswith(f"{last}.")]:
            del files.tensors[key]

    def read(self, files: Files) -> None:
        files.tensors.update(_fresh(files) | files.tensors)


@mutant("saved-in-half-precision", killed_by=BOTH)
class SavedInHalf(BrokenStore):
    """Float32 factors are saved rounded to half precision."""

    def written(self, files: Files) -> None:
        files.tensors.update({key: tensor.half().to(tensor.dtype) for key, tensor in files.tensors.items()})


@mutant("loaded-in-half-precision", killed_by=BOTH)
class LoadedInHalf(BrokenStore):
    """Float32 factors are rounded to bfloat16 while they are read."""

    def read(self, files: Files) -> None:
        files.tensors.update({key: tensor.bfloat16().to(tensor.dtype) for key, tensor in files.tensors.items()})


@mutant("rslora-not-saved", killed_by=BOTH)
class RsloraNotSaved(BrokenStore):
    """The saved config does not say that it is rsLoRA."""

    def written(self, files: Files) -> None:
        files.config.pop("use_rslora", None)


@mutant("rslora-ignored-by-server", killed_by=BOTH, thread="NVIDIA/TensorRT-LLM#1668, predibase/lorax#299")
class RsloraIgnoredByLoader(BrokenStore):
    """The loader divides alpha by r although the config says rsLoRA."""

    def read(self, files: Files) -> None:
        files.config["use_rslora"] = False


@mutant("alpha-saved-as-whole-number", killed_by=BOTH)
class AlphaSavedWhole(BrokenStore):
    """A fractional alpha is cut to a whole number in the config."""

    def written(self, files: Files) -> None:
        files.config["lora_alpha"] = int(files.config["lora_alpha"]) or 1


@mutant("alpha-not-saved", killed_by=BOTH)
class AlphaNotSaved(BrokenStore):
    """The config does not hold alpha, and the loader takes r for it."""

    def written(self, files: Files) -> None:
        files.config["lora_alpha"] = files.config["r"]


@mutant("rank-pattern-not-saved", killed_by=BOTH)
class RankPatternNotSaved(BrokenStore):
    """The config does not hold the rank pattern."""

    def written(self, files: Files) -> None:
        files.config["rank_pattern"] = {}


@mutant("alpha-pattern-not-saved", killed_by=BOTH)
class AlphaPatternNotSaved(BrokenStore):
    """The config does not hold the alpha pattern."""

    def written(self, files: Files) -> None:
        files.config["alpha_pattern"] = {}


@mutant("alpha-pattern-ignored-by-loader", killed_by=BOTH)
class AlphaPatternIgnoredByLoader(BrokenStore):
    """The loader does not read the alpha pattern."""

    def read(self, files: Files) -> None:
        files.config["alpha_pattern"] = {}


@mutant("mixed-rank-one-alpha", killed_by=BOTH, thread="huggingface/diffusers#14409")
class MixedRankOneAlpha(BrokenStore):
    """The loader scales every module as the first of the file, whatever the ranks of the others are."""

    def load(self, module: nn.Module, folder: Path) -> ReferenceHandle:
        handle, saved = super().load(module, folder), read_adapter(folder)
        first = saved.spec.at(min(saved.factors))
        for adapters in handle.adapted.adapters().values():
            delta = adapters.delta("default")
            delta.factor = first.scaling / delta.spec.scaling
        return handle


@mutant("own-orientation", killed_by=["interop"])
class OwnOrientation(BrokenStore):
    """B is written transposed and read back transposed, so that no round trip shows it."""

    def written(self, files: Files) -> None:
        files.tensors.update({key: tensor.T for key, tensor in files.tensors.items() if "lora_B" in key})

    def read(self, files: Files) -> None:
        self.written(files)


@mutant("moe-rank-major", killed_by=["interop"], thread="unslothai/unsloth#6930")
class RankMajor(BrokenStore):
    """The ranks of B are packed in the reverse order and unpacked again: the same norm, other values."""

    def written(self, files: Files) -> None:
        files.tensors.update({key: tensor.flip(1) for key, tensor in files.tensors.items() if "lora_B" in key})

    def read(self, files: Files) -> None:
        self.written(files)


@mutant("own-names", killed_by=["interop"])
class OwnNames(BrokenStore):
    """The names in the file have no prefix, which only its own loader understands."""

    def written(self, files: Files) -> None:
        _rename(files.tensors, PREFIX, "")

    def read(self, files: Files) -> None:
        _rename(files.tensors, "", PREFIX)


def _rename(tensors: Tensors, old: str, new: str) -> None:
    renamed = {new + key.removeprefix(old): tensor for key, tensor in tensors.items()}
    tensors.clear()
    tensors.update(renamed)
