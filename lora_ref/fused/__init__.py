"""LoRA at little more than the cost of the frozen layer: autograd functions, and layers and models built on them."""

from lora_ref.fused.accelerate import Accelerated as Accelerated
from lora_ref.fused.accelerate import accelerate as accelerate
from lora_ref.fused.feedforward import mlp as mlp
from lora_ref.fused.modules import FusedLayer as FusedLayer
from lora_ref.fused.modules import FusedModel as FusedModel
from lora_ref.fused.routed import batch as batch
from lora_ref.fused.shared import project as project
from lora_ref.fused.single import dora as dora
from lora_ref.fused.single import linear as linear
from lora_ref.fused.stack import Projection as Projection
