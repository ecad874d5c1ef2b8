"""LoRA in Triton: the linear, forward and backward in fused kernels, and batches whose rows have their own adapters.

Importing this needs neither Triton nor a GPU. Running it needs Triton and tensors on a GPU, or, on a CPU and slowly,
Triton's interpreter: TRITON_INTERPRET=1, set before Python starts.
"""

from lora_ref.fused.kernels import flops as _flops  # noqa: F401 - registers the formulas
from lora_ref.fused.kernels.operators import lora_linear
from lora_ref.fused.kernels.requirements import device
from lora_ref.fused.kernels.routed_operators import routed_linear
from lora_ref.fused.kernels.routing import Routing, Stacked

__all__ = ["Routing", "Stacked", "device", "lora_linear", "routed_linear"]
