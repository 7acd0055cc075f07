"""Networks; importing them imports torch."""

from torch import nn


class Linear(nn.Linear):
    """A network of one layer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
