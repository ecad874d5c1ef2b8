"""What an implementation costs. Nothing is measured here yet."""
