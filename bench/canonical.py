"""The shapes of the models that the field trains, and the cases of each profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from bench.cases import TRAINING, Case, Mix, Mode


@dataclass(frozen=True)
class Architecture:
    """Sizes of one decoder or encoder layer. ``kv`` is narrower than ``hidden`` in grouped-query attention."""

    hidden: int
    kv: int
    intermediate: int
    gated: bool = True  # gate, up, down as in Llama; otherwise up, down as in BERT

    def layers(self) -> dict[str, tuple[int, int]]:
        """(in_features, out_features) of each linear module."""
        h, kv, i = self.hidden, self.kv, self.intermediate
        gate = {"gate": (h, i)} if self.gated else {}
        return {"q": (h, h), "k": (h, kv), "v": (h, kv), "o": (h, h), **gate, "up": (h, i), "down": (i, h)}


ARCHITECTURES = {
    "bert-base": Architecture(768, 768, 3072, gated=False),
    "tinyllama-1.1b": Architecture(2048, 256, 5632),
    "llama-2-7b": Architecture(4096, 4096, 11008),
    "llama-3-8b": Architecture(4096, 1024, 14336),
    "qwen2.5-7b": Architecture(3584, 512, 18944),
    "llama-70b": Architecture(8192, 1024, 28672),
}
SQUARES = (4096, 5120, 8192)

_CPU_LAYERS = (("bert-base", "q", 8, 256), ("tinyllama-1.1b", "q", 16, 512), ("tinyllama-1.1b", "gate", 16, 512))
_SERVED = (1, 4, 16, 64)


def layer_shapes() -> Iterator[tuple[str, str, int, int]]:
    """Every canonical layer once: (model, module, in_features, out_features); equal shapes of one model are one."""
    for model, architecture in ARCHITECTURES.items():
        seen = set()
        for module, shape in architecture.layers().items():
            if shape not in seen:
                seen.add(shape)
                yield model, module, *shape
    for size in SQUARES:
        yield f"square-{size}", "q", size, size


def layer(model: str, module: str, rank: int, tokens: int, mode: Mode) -> Case:
    """One linear layer of a canonical architecture."""
    fan_in, fan_out = ARCHITECTURES[model].layers()[module]
    return Case(model, module, fan_in, fan_out, rank, 1, tokens, mode)


def group(model: str, module: str, rank: int, tokens: int, mode: Mode) -> Case:
    """The projections that share an input ("qkv"), or the whole feed-forward block ("mlp")."""
    first = ARCHITECTURES[model].layers()["q" if module == "qkv" else "up"]
    return Case(model, module, *first, rank, 1, tokens, mode)


def whole(model: str, rank: int, batch: int, seq: int, mode: Mode) -> Case:
    """A whole model: a built-in name, as ``bench.nets`` lists them."""
    return Case(model, "model", 0, 0, rank, batch, seq, mode)


def cpu_quick() -> Iterator[Case]:
    """Fits in two minutes on two cores, conformance of two backends included."""
    small, middle, large = _CPU_LAYERS
    for case in (small, middle):
        yield from (layer(*case, mode) for mode in TRAINING)
    yield layer(*large, Mode.STEP)
    for module in ("qkv", "mlp"):
        yield from (group("bert-base", module, 8, 128, mode) for mode in TRAINING)
    yield layer(*_CPU_LAYERS[0], Mode.MERGE)
    yield mixed("bert-base", "q", 8, 64, 4, "uniform")
    yield whole("tiny-llama", 8, 2, 16, Mode.STEP)
    yield from (replace(whole("tiny-llama", 8, 2, 16, Mode.LOAD), n_adapters=n) for n in (1, 4))
    yield replace(whole("tiny-llama", 8, 2, 16, Mode.SWITCH), n_adapters=4)


def cpu() -> Iterator[Case]:
    """Minutes on two cores: more shapes, ranks, dropout, real models, 1 to 64 adapters."""
    yield from cpu_quick()
    yield from (layer(*_CPU_LAYERS[-1], mode) for mode in (Mode.FORWARD, Mode.BACKWARD))
    for case in _CPU_LAYERS:
        yield from (replace(layer(*case, mode), dropout=0.1) for mode in TRAINING)
    for rank in (32, 64):
        yield layer("tinyllama-1.1b", "q", rank, 512, Mode.STEP)
    for module in ("up", "down"):
        yield layer("bert-base", module, 8, 256, Mode.STEP)
    for module, mode in product(("qkv", "mlp"), TRAINING):
        yield group("tinyllama-1.1b", module, 16, 256, mode)
    for mix in ("same", "different", "zipf"):
        yield mixed("tinyllama-1.1b", "q", 16, 64, 8, mix)
    yield from (whole("minilm", 8, 8, 32, mode) for mode in (*TRAINING, Mode.MERGE))
    yield replace(whole("minilm", 8, 8, 32, Mode.STEP), grad_ckpt=True)
    for n, mode in product(_SERVED, (Mode.LOAD, Mode.SWITCH)):
        yield replace(whole("minilm", 8, 8, 32, mode), n_adapters=n)


def gpu() -> Iterator[Case]:
    """Training and decoding shapes in bfloat16, adapters in bfloat16 and float32."""
    for model, module, fan_in, fan_out in layer_shapes():
        for tokens, mode in product((2048, 8192), TRAINING):
            yield from _half(Case(model, module, fan_in, fan_out, 16, 1, tokens, mode))
        for tokens in (1, 64):
            yield from _half(Case(model, module, fan_in, fan_out, 16, 1, tokens, Mode.FORWARD))
    for model, module, mode in product(("llama-2-7b", "llama-3-8b"), ("qkv", "mlp"), TRAINING):
        yield from _half(group(model, module, 16, 4096, mode))
    mixes: tuple[Mix, ...] = ("same", "different", "uniform", "zipf")
    for n, mix in product((1, 4, 8, 32), mixes):
        yield from _half(mixed("llama-2-7b", "q", 16, 256, n, mix))
    yield from (whole("minilm", 8, 32, 128, mode) for mode in (*TRAINING, Mode.MERGE, Mode.LOAD))


def gpu_weekly() -> Iterator[Case]:
    """All ranks and lengths, dropout, float16 and torch.compile."""
    yield from gpu()
    for (model, module, fan_in, fan_out), rank in product(layer_shapes(), (1, 8, 32, 64, 128, 256)):
        yield from _half(Case(model, module, fan_in, fan_out, rank, 1, 4096, Mode.STEP))
    for model, module, fan_in, fan_out in layer_shapes():
        case = Case(model, module, fan_in, fan_out, 16, 1, 4096, Mode.STEP)
        yield from _half(replace(case, dropout=0.1))
        yield from _half(replace(case, compile=True))
        yield replace(case, base_dtype="float16", adapter_dtype="float16")


def mixed(model: str, module: str, rank: int, rows: int, n_adapters: int, mix: Mix) -> Case:
    """A batch of ``rows`` sequences of one token, served by ``n_adapters``."""
    fan_in, fan_out = ARCHITECTURES[model].layers()[module]
    return Case(model, module, fan_in, fan_out, rank, rows, 1, Mode.MIXED, n_adapters=n_adapters, adapter_mix=mix)


def _half(case: Case) -> Iterator[Case]:
    yield replace(case, base_dtype="bfloat16", adapter_dtype="bfloat16")
    yield replace(case, base_dtype="bfloat16", adapter_dtype="float32")


PROFILES = {"cpu-quick": cpu_quick, "cpu": cpu, "gpu": gpu, "gpu-weekly": gpu_weekly}
