"""The one exception that this package raises on purpose."""


class LoraError(ValueError):
    """A request that cannot be met without giving a wrong result; the message is one line and says what to do."""
