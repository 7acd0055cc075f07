"""Images as networks want them."""

from __future__ import annotations

from torch import Tensor, nn


class Unit(nn.Module):
    """Colours in whole numbers up to 255 become floats up to 1; floats stay as they are."""

    def forward(self, image: Tensor) -> Tensor:
        """From ``[..., channels, height, width]`` to the same shape."""
        return image if image.is_floating_point() else image.float() / 255
