"""Calls of the command line in this process."""

from losskernel.cli import main


def run(*arguments) -> int:
    """The exit status of a command, whose words may be paths and numbers."""
    return main([str(argument) for argument in arguments])
