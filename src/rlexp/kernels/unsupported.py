"""Why a part of torchrl runs itself."""


class UnsupportedError(Exception):
    """No kernel equals this part; the message says why, and the part itself runs."""
