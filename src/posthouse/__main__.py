"""`python -m posthouse` is the command `posthouse`."""

from posthouse.cli import main

main()
