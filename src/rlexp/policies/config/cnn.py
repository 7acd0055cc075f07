"""Settings of the policy that reads images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlexp.config import ConfigError, Count, Problem
from rlexp.policies.config.network import GaussianConfig, NetworkConfig
from rlexp.policies.spaces import cannot_act

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchrl.envs import EnvBase

    from rlexp.policies.inputs import Inputs, Specs


class CNNConfig(GaussianConfig, NetworkConfig):
    """Convolutions over images (Mnih et al. 2015): ``torchrl.modules.ConvNet``, and fully connected layers on it.

    Bytes (uint8) are colours: they are divided by 255. Floating-point images are read as they are. A simulator's images
    of other integers are refused unless a transform scales them, since they are floats before they come here.

    Attributes:
        channels: output channels of each convolution.
        kernel_sizes: width and height of each kernel.
        strides: stride of each convolution.
        distribution: over actions; ``auto`` takes categorical, tanh_normal or normal, whichever fits first.
    """

    observation_dims = 3
    builds = ("torchrl.modules.ConvNet",)

    channels: Annotated[list[Count], Field(min_length=1)]
    kernel_sizes: list[Count]
    strides: list[Count]
    distribution: Literal["auto", "tanh_normal", "normal", "beta", "categorical"]

    def problems(self) -> Iterator[Problem]:
        """As many kernels and strides as convolutions."""
        yield from super().problems()
        for name in ("kernel_sizes", "strides"):
            if len(values := getattr(self, name)) != len(self.channels):
                message = f"needs one entry for each of policy.channels, which are {len(self.channels)}."
                yield Problem(name, message, str(values))

    def choice(self, fitting: list[str]) -> str:
        """The one named, or the first that fits."""
        return fitting[0] if self.distribution == "auto" and fitting else self.distribution

    def convolutions(self) -> Callable[[torch.Size], nn.Module]:
        """The convolutions that the settings describe."""
        from rlexp.policies.encoders import CNN

        return lambda shape: CNN(shape, self.channels, self.kernel_sizes, self.strides, self.activation_class)

    def check_observation(self, env: EnvBase, actor: Specs, critic: Specs) -> None:
        """Refuse observations without an image, and images that the convolutions cannot read.

        Raises:
            ConfigError: there is no image, it is too small, or its channels are last.
        """
        from rlexp.policies.encoders import check_image

        plain = {key: spec.shape for key, spec in {**actor, **critic}.items() if key not in self.encoders}
        images = {key: shape for key, shape in plain.items() if len(shape) == 3}
        if plain and not images and not self.encoders:
            key, shape = next(iter(plain.items()))
            kind = "images [channels, height, width]"
            raise cannot_act(env, f"its network reads {kind}, and this environment's {key} has shape {list(shape)}")
        for key, shape in images.items():
            try:
                check_image(shape, self.kernel_sizes, self.strides, key)
            except ValueError as error:
                raise ConfigError([Problem("policy", f"{error}.")]) from error

    def trunk(self, inputs: Inputs) -> tuple[nn.Module, int]:
        """Convolutions, where a lone image is read, and fully connected layers."""
        import torch
        from torch import nn

        width = int(self.num_cells[-1])
        if inputs.encoders or len(inputs.shape) != 3:
            return self.perceptron(inputs.shape.numel()), width
        convolutions = self.convolutions()(inputs.shape)
        features = convolutions(torch.zeros(1, *inputs.shape)).shape[-1]
        return nn.Sequential(convolutions, self.perceptron(features)), width
