"""The exception for errors that the user can correct."""

from botvision.text import printable

# What torch's data loader writes before an error that it carries over from another process.
_CARRIED = "\nbotvision.errors.UserError: "


class UserError(ValueError):
    """An error in the input of the user: a file, an argument or a data set.

    ``str()`` is one line without control characters, whatever names the message contains.

    Args:
        message: what is wrong and how to correct it, in one line. It names the file, if there is
            one. Names of other parameters are in backticks, such as "requires `eval_steps`".
        parameter: name of the wrong parameter, such as ``"image_size"``. ``str()`` begins with it.
            The command prints it, and names in backticks, as flags, such as ``--image-size``.
        value: the wrong value, if the message should contain it.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        # torch raises the error of a data loading process again, with the traceback as the message.
        self.message = printable(message.rpartition(_CARRIED)[2].rstrip("\n"))
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        if self.parameter is None:
            return self.message
        given = "" if self.value is None else f" {self.value}"
        return printable(f"{self.parameter}{given}: {self.message}")
