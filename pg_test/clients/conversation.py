"""How a client program talks with its test: a command a line in, "ok …" or "error …" a line out."""

import sys


def converse(commands):
    """Answers each line of the input by one of `commands`, functions of words that return what they found."""
    for line in sys.stdin:
        name, *arguments = line.split()
        try:
            found = commands[name](*arguments)
            print("ok", *(found or ()), flush=True)
        except Exception as error:
            print("error", describe(error), flush=True)


def describe(error):
    """The SQLSTATE, or else the class, and the first line of the message. Frameworks wrap the driver's error."""
    innermost = getattr(error, "orig", None) or error.__cause__ or error
    code = getattr(innermost, "sqlstate", None) or type(error).__name__
    return f"{code} {str(innermost).splitlines()[0]}"
