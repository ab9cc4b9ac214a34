"""What the commands refuse."""


class ArgumentError(Exception):
    """An argument, or a file that it names, is wrong: one line for the user."""
