"""Whether an implementation is LoRA: one contract, and the invariants that every implementation must satisfy."""
