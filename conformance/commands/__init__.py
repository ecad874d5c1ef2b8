"""What ``lora-conformance`` does, one file per command."""
