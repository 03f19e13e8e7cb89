"""The one exception a user is meant to read."""


class UserError(ValueError):
    """A fault in what the user gave: a file, an argument, a data set.

    Args:
        message: one line: what is wrong and what to do. It names the file, and writes the
            names of other parameters in backticks, such as "give `eval_steps` too".
        parameter: name of the parameter at fault, such as ``"image_size"``; ``str()`` begins with
            it. The command writes ``--image-size`` for it and for the names in backticks.
        value: what the parameter was given, where the message should repeat it.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        if self.parameter is None:
            return self.message
        given = "" if self.value is None else f" {self.value}"
        return f"{self.parameter}{given}: {self.message}"
