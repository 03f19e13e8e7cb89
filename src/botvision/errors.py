"""The one exception a user is meant to read."""


class UserError(Exception):
    """A fault in what the user gave: a file, a flag, a data set.

    The message is one line that names the file or flag, says what is wrong and what to do. The
    command prints it to stderr and exits with status 2; a library caller catches it like any other
    exception.
    """
