"""`python -m vlmkit` is `vlmkit`."""

from vlmkit.cli.main import run

run()
