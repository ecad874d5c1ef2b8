"""``python -m reports``."""

from reports.cli import app

app()
