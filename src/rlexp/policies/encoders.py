"""From the entries of an observation to the features that a network reads.

An encoder is called with the ``shape`` of its entry, and reads ``[n, *shape]``, giving features ``[n, features]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl import modules

from rlexp.policies.activations import ACTIVATIONS
from rlexp.policies.pixels import Unit


def nonlinearity(name: str) -> type[nn.Module]:
    """The class of torch.nn of this name.

    Raises:
        ValueError: it is none of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation_class={name} is none of {', '.join(ACTIVATIONS)}")
    found: type[nn.Module] = getattr(nn, name)
    return found


class Identity(nn.Module):
    """The numbers of an entry as they are, one after another; bytes are divided by 255."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """From ``[n, *shape]`` to ``[n, features]``."""
        flat = x.reshape(x.shape[0], -1)
        return flat if flat.is_floating_point() else flat.float() / (255 if flat.dtype is torch.uint8 else 1)


class MLP(nn.Sequential):
    """Fully connected layers: ``torchrl.modules.MLP``.

    Args:
        shape: of the entry.
        num_cells: width of each layer; the last is the number of features.
        activation_class: name of the nonlinearity after each layer, one of torch.nn's.

    Raises:
        ValueError: there is no layer, or one has no width.
    """

    def __init__(self, shape: Sequence[int], num_cells: Sequence[int] = (64,), activation_class: str = "Tanh") -> None:
        if not num_cells or min(num_cells) < 1:
            raise ValueError(f"num_cells={list(num_cells)} needs the width of at least one layer, and none below 1")
        *hidden, last = (int(width) for width in num_cells)
        activation = nonlinearity(activation_class)
        layers = modules.MLP(
            torch.Size(shape).numel(), last, num_cells=hidden, activation_class=activation, activate_last_layer=True
        )
        super().__init__(Identity(shape), layers)


class CNN(nn.Sequential):
    """Convolutions over images (Mnih et al. 2015): ``torchrl.modules.ConvNet``. Bytes are divided by 255.

    Args:
        shape: of the image, ``[channels, height, width]``.
        channels: output channels of each convolution.
        kernel_sizes: width and height of each kernel.
        strides: stride of each convolution.
        activation_class: name of the nonlinearity after each convolution, one of torch.nn's.

    Raises:
        ValueError: the entry is no such image, or too small for the kernels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 64),
        kernel_sizes: Sequence[int] = (8, 4, 3),
        strides: Sequence[int] = (4, 2, 1),
        activation_class: str = "ReLU",
    ) -> None:
        if not len(channels) == len(kernel_sizes) == len(strides):
            raise ValueError("channels, kernel_sizes and strides need one number for each convolution")
        check_image(shape, kernel_sizes, strides)
        layers = modules.ConvNet(
            in_features=int(shape[0]),
            num_cells=[int(n) for n in channels],
            kernel_sizes=[int(n) for n in kernel_sizes],
            strides=[int(n) for n in strides],
            activation_class=nonlinearity(activation_class),
        )
        super().__init__(Unit(), layers)


def check_image(shape: Sequence[int], kernel_sizes: Sequence[int], strides: Sequence[int], key: str = "it") -> None:
    """Refuse what convolutions cannot read.

    Raises:
        ValueError: ``shape`` is no image ``[channels, height, width]``, or too small for the kernels.
    """
    if len(shape) != 3:
        raise ValueError(f"convolutions read images [channels, height, width], and {key} has shape {list(shape)}")
    if shape[2] in (1, 3, 4) and shape[0] > 4:
        raise ValueError(
            f"convolutions read images [channels, height, width], and {key} of shape {list(shape)} has channels last: "
            "put env.transforms.image={_target_: torchrl.envs.PermuteTransform, dims: [-1, -3, -2], "
            f"in_keys: [{key}]}} first, or transpose the image in the environment"
        )
    size = list(shape[1:])
    for kernel, stride in zip(kernel_sizes, strides, strict=True):
        size = [(width - kernel) // stride + 1 for width in size]
        if min(size) < 1:
            kernels = list(map(int, kernel_sizes))
            raise ValueError(f"an image of {list(shape[1:])} is too small for kernels of {kernels}")


class Encoded(nn.Module):
    """A network over the features of several entries.

    Args:
        encoders: one for each entry, in order.
        shapes: of the entries.
        network: reads all their features, ``[..., features]``.
    """

    def __init__(self, encoders: Sequence[nn.Module], shapes: Sequence[Sequence[int]], network: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.network = network
        self._shapes = [tuple(shape) for shape in shapes]

    def features(self, *entries: Tensor) -> Tensor:
        """The features ``[..., features]`` of entries ``[..., *entry]``."""
        return torch.cat(
            [
                encoder(entry.reshape(-1, *shape)).reshape(*entry.shape[: entry.dim() - len(shape)], -1)
                for encoder, shape, entry in zip(self.encoders, self._shapes, entries, strict=True)
            ],
            -1,
        )

    def forward(self, *entries: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the network makes of the entries ``[..., *entry]``."""
        out: Tensor | tuple[Tensor, ...] = self.network(self.features(*entries))
        return out

    @property
    def concatenates(self) -> bool:
        """Whether no more is done to the entries than to put their numbers one after another."""
        return all(type(encoder) is Identity for encoder in self.encoders)
