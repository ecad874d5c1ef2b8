"""One short adapter per implementation."""
