"""What an implementation costs: time, memory, FLOPs and bytes, never without a verdict on whether it is right."""
