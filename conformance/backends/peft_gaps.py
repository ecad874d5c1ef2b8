"""What PEFT 0.21.2 is known to get wrong: found by running the suite, checked by hand, run again every time."""

from __future__ import annotations

from itertools import product
from typing import Any

from conformance.contract import Facet, Gap
from conformance.peft_layout import NOWHERE, Damage

_SQUARE: dict[str, Any] = {"in_features": 3, "out_features": 3, "r": 2, "alpha": 4.0}
_CONV = {"kind": "conv", "in_features": 1, "out_features": 1, "r": 2, "alpha": 4.0, "padding": (0,), "stride": (1,)}
_DILATIONS = tuple(d for n in (1, 2, 3) for d in product((1, 2), repeat=n) if 2 in d)
_POINTWISE = tuple((1, 1, k) for k in (1, 2, 3))
_SILENT_LOADS = (Damage.EMPTY, Damage.MISSING, Damage.FOREIGN, Damage.PREFIX)
_TRACKER = "https://github.com/huggingface/peft/issues/"
_TWO = {**_SQUARE, "ranks": (4,), "alphas": (4.0,), "shares": (1.0, 1.0)}

GAPS = (
    Gap(
        "active-set-additive",
        "notyet",
        "a combination of rsLoRA adapters is sqrt(r) times too strong: its alpha is r, and use_rslora stays on",
        case={**_TWO, "r": 4, "alpha": 8.0, "rslora": True, "headroom": 3},
        where={"rslora": (True,)},
        upstream=_TRACKER + "3761",
    ),
    Gap(
        "active-set-additive",
        "notyet",
        "a combination of several float32 adapters over a narrower base is stored in the base's dtype",
        case={**_TWO, "in_features": 16, "out_features": 16, "tier": "bounded", "adapter_dtype": "float32"},
        where={"adapter_dtype": ("float32",)},
        dtypes=("bfloat16", "float16"),
    ),
    Gap(
        "row-routing",
        "notyet",
        "in a mixed batch the delta of a float32 adapter is rounded to a narrower base's dtype before it is added",
        case={**_SQUARE, "alpha": 3.0, "tier": "bounded", "adapter_dtype": "float32", "lead": (5,), "index": (0,) * 5},
        where={"adapter_dtype": ("float32",)},
        dtypes=("bfloat16", "float16"),
    ),
    Gap(
        "base-geometry-parity",
        "notyet",
        "a convolution's padding mode is not handed to A: the delta sees zeros at the borders",
        case={**_CONV, "size": (2,), "kernel": (1,), "padding": (1,), "dilation": (1,), "padding_mode": "reflect"},
        where={"kind": ("conv",), "padding_mode": ("reflect", "replicate", "circular")},
        upstream=_TRACKER + "3697",
    ),
    Gap(
        "base-geometry-parity",
        "notyet",
        "a convolution's dilation is not handed to A: the delta has another shape, or other values",
        case={**_CONV, "out_features": 2, "size": (4,), "kernel": (2,), "dilation": (2,)},
        where={"kind": ("conv",), "dilation": _DILATIONS},
        upstream=_TRACKER + "3697",
        raises="RuntimeError",
    ),
    *(
        Gap(
            invariant,
            "notyet",
            "merging a Conv3d whose first two kernel dimensions are 1 takes the shortcut for 1x1 Conv2d and raises",
            case={**_CONV, "in_features": 2, "out_features": 3, "size": (1, 1, 1), "kernel": (1, 1, 1),
                  "stride": (1, 1, 1), "padding": (0, 0, 0), "dilation": (1, 1, 1)},
            where={"kind": ("conv",), "kernel": _POINTWISE},
            upstream=_TRACKER + "3768",
            raises="RuntimeError",
            facets=(Facet.LAYER,),
        )
        for invariant in ("merge-delta-oracle", "merge-equivalence", "unmerge-restores-base")
    ),
    Gap(
        "unmerge-restores-base",
        "never",
        "unmerging subtracts what merging added, so the base takes a random walk when the adapter changes in between",
        case={"in_features": 16, "out_features": 16, "r": 1, "alpha": 1.0, "tier": "bounded", "seed": 1},
        where={"tier": ("bounded",)},
        upstream="https://github.com/huggingface/trl/issues/6688",
        facets=(Facet.LAYER,),
    ),
    Gap(
        "merge-atomic",
        "never",
        "merge() without safe_merge=True writes a NaN or infinite delta into the base, and unmerge cannot take it out",
        case=_SQUARE,
        facets=(Facet.LAYER,),
    ),
    Gap(
        "merge-state-honest",
        "notyet",
        "A, B or the scale changed while merged: forward gives the old output, and unmerge subtracts the new delta",
        case={**_SQUARE, "headroom": 1, "operation": "rewrite"},
        where={"operation": ("rewrite", "rescale")},
        upstream=_TRACKER + "3581",
    ),
    Gap(
        "mode-lifecycle",
        "notyet",
        "a training forward while merged gives an output without gradients for A and B, and says nothing",
        case=_SQUARE,
        where={"tier": ("exact",), "dropout": (0.0,)},
    ),
    Gap(
        "trainable-set-exact",
        "notyet",
        "a second adapter added to an embedding in half precision is trainable at once, though it is not active",
        case={**_SQUARE, "kind": "embedding"},
        where={"kind": ("embedding",)},
        facets=(Facet.LAYER,),
        dtypes=("bfloat16", "float16"),
    ),
    Gap(
        "precision-bound",
        "notyet",
        "the delta is rounded to the weight's dtype before it is added, so a merge in half precision rounds twice",
        case={**_SQUARE, "tier": "bounded", "alpha": 3.0},
        upstream=_TRACKER + "2502",
        facets=(Facet.LAYER,),
        dtypes=("bfloat16", "float16"),
    ),
    Gap(
        "autocast-parity",
        "notyet",
        "a merge within autocast forms the delta in the region's dtype: a float32 weight gets one rounded to bfloat16",
        case={"r": 2, "alpha": 3.0, "operation": "merge"},
        where={"operation": ("merge",)},
        facets=(Facet.MODEL,),
    ),
    Gap(
        "merge-no-alias",
        "notyet",
        "merging an adapter of a tied output head changes the input embedding; a warning is all that says so",
        case={"r": 2, "alpha": 1.0},
        upstream=_TRACKER + "2018",
    ),
    Gap(
        "pattern-effective",
        "notyet",
        "a target, or a key of rank_pattern or alpha_pattern, that matches nothing is accepted beside one that matches",
        case={"r": 2, "alpha": 3.0, "operation": "stray rank"},
        where={"operation": ("stray target", "stray rank", "stray alpha")},
        upstream=_TRACKER + "3582",
    ),
    Gap(
        "load-strict",
        "never",
        "from_pretrained warns about missing tensors and ignores foreign ones: a model without its adapter is returned",
        case={"r": 2, "alpha": 1.0, "operation": Damage.EMPTY.value},
        where={"operation": tuple(kind.value for kind in _SILENT_LOADS)},
        upstream="https://github.com/huggingface/peft/pull/2118",
    ),
    Gap(
        "added-adapter-isolation",
        "never",
        "load_adapter puts the whole model into eval mode, also while another adapter is trained: no more dropout",
        case={"states": ("training",)},
        where={"training": (True,)},
    ),
    Gap(
        "added-adapter-isolation",
        "never",
        "load_adapter unmerges what is merged, by subtraction, with a warning: W does not quite come back",
        case={"states": ("merged",)},
        where={"merged": (True,)},
    ),
    Gap(
        "added-adapter-isolation",
        "notyet",
        "a module that gets its first adapter while adapters are disabled is not: it adds its delta once active",
        case={"states": ("disabled",)},
        where={"disabled": (True,), "widening": (True,)},
    ),
    Gap(
        "load-atomic",
        "notyet",
        "load_adapter under a name that is taken keeps its alpha and modules, and drops tensors for others",
        case={"operation": "", "taken": True, "ranks": (2,)},
        where={"operation": ("", NOWHERE, Damage.SHAPE.value), "taken": (True,)},
    ),
    Gap(
        "load-atomic",
        "notyet",
        "a load that is refused leaves an adapter with initial values, so that the right file meets its rank and alpha",
        case={"operation": Damage.TRUNCATED.value},
        where={"operation": (Damage.TRUNCATED.value, Damage.SHAPE.value), "taken": (False,)},
    ),
    Gap(
        "load-atomic",
        "never",
        "load_adapter, too, warns about missing tensors and ignores foreign ones",
        case={"operation": Damage.EMPTY.value},
        where={"operation": tuple(kind.value for kind in _SILENT_LOADS)},
        upstream="https://github.com/huggingface/peft/pull/2118",
    ),
    Gap(
        "dora-consistent",
        "notyet",
        "an output whose row of W + s·B·A is zero has norm 0, and m/norm is NaN or infinite",
        case={**_SQUARE, "alpha": 3.0, "tier": "bounded", "dora": True, "zero_row": True},
        where={"zero_row": (True,)},
        upstream=_TRACKER + "3237",
    ),
    Gap(
        "dora-consistent",
        "notyet",
        "DoRA scales by a factor of shape (1, out), so that an input without leading dimensions gives y (1, out)",
        case={**_SQUARE, "alpha": 3.0, "tier": "bounded", "dora": True, "lead": ()},
        where={"lead": ((),)},
    ),
    *(
        Gap(
            "residual-init-preserves",
            "never",
            f"PiSSA and OLoRA write W less their first B·A into the base, {what}",
            case={**_SQUARE, "alpha": 3.0, "tier": "bounded", "init": "pissa", "operation": operation},
            where={"operation": (operation,)},
            upstream="https://github.com/huggingface/transformers/issues/34468",
            facets=(Facet.LAYER,),
        )
        for operation, what in (("disable", "and disabling shows that"), ("switch", "which every other adapter sees"))
    ),
    Gap(
        "residual-init-preserves",
        "notimpl",
        "a PiSSA or OLoRA adapter with rsLoRA and patterns cannot be saved as a plain one",
        case={"r": 2, "alpha": 3.0, "rslora": True, "rank_pattern": (("dense", 3),), "init": "pissa"},
        where={"rslora": (True,), "patterned": (True,)},
        raises="ValueError",
        facets=(Facet.STORE,),
    ),
    Gap(
        "residual-init-preserves",
        "notyet",
        "OLoRA takes a Conv1D's weight (in, out) for (out, in): the start is not the base, or the shapes do not fit",
        case={**_SQUARE, "alpha": 3.0, "tier": "bounded", "kind": "transposed", "init": "olora"},
        where={"kind": ("transposed",), "init": ("olora",)},
        facets=(Facet.LAYER,),
    ),
)  # fmt: skip
