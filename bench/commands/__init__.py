"""What `lora-bench` does, a file for each command."""
