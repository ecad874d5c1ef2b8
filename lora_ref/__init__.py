"""What LoRA is: a short reference implementation and its closed form in float64."""
