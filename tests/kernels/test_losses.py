"""The losses on plain tensors against torchrl's modules: losses, gradients, metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agents import batch_of, gaussian_networks, minibatch_loss, networks
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, distributions
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import A2CLoss, ClipPPOLoss, KLPENPPOLoss, LossModule, PPOLoss, ReinforceLoss

from rlexp.kernels.distributions import CategoricalFamily, Parts
from rlexp.kernels.losses import FastClipPPO, clipped_surrogate, fast_loss
from rlexp.kernels.terms import DistributionTerms, FamilyTerms
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.module import Loss, Minibatch, MinibatchLoss
from rlexp.policies import ActorCritic

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "bonus": ["loss.entropy_coeff=0.01"],
    "l2": ["loss.loss_critic_type=l2", "loss.critic_coeff=0.3"],
    "l1, clipped value": ["loss.loss_critic_type=l1", "loss.clip_value=0.05"],
    "normalized": ["loss.normalize_advantage=true"],
}
GRU = ["policy=gru", "policy.hidden_size=8", "policy.sequence_length=8"]
POLICIES: dict[str, list[str]] = {
    "state-dependent scale": ["policy.state_independent_scale=false"],
    "scale at its bounds": ["policy.state_independent_scale=false", "policy.scale_lb=0.9", "policy.scale_ub=1.1"],
    "relu": ["policy.num_cells=[32]", "policy.activation_class=ReLU"],
    "elu": ["policy.activation_class=ELU"],
    "shared": ["policy.shared=true"],
    "normal": ["policy=normal"],
    "beta": ["policy=beta"],
    "gru": GRU,
    "lstm, shared": ["policy=lstm", "policy.hidden_size=8", "policy.sequence_length=8", "policy.shared=true"],
}
DISCRETE: dict[str, list[str]] = {"categorical": ["policy=categorical"], "gru, discrete": GRU}
KINDS = ["clip_ppo", "spo", "kl_ppo", "a2c", "reinforce"]


class StudentT(distributions.Independent):  # type: ignore[type-arg, unused-ignore]
    """A distribution whose KL torch does not know."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(distributions.StudentT(5.0, loc, scale), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        loc: Tensor = self.base_dist.loc
        return loc


def unknown_networks() -> ActorCritic:
    built = gaussian_networks()
    actor = ProbabilisticActor(
        TensorDictModule(built.actor.module[0].module, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=StudentT,
        return_log_prob=True,
    )
    return ActorCritic(actor, built.critic)


def measured(loss: MinibatchLoss, batch: TensorDict, built: ActorCritic) -> tuple[dict[str, Tensor], Any, Any]:
    """Losses, gradient and metrics of two minibatches."""
    batch = batch.clone()
    loss.prepare(batch)
    torch.manual_seed(2)  # entropies are sampled
    steps = {key: batch[key].flatten(0, 1) for key in loss.keys}
    halves = [{key: value.split(128)[i] for key, value in steps.items()} for i in range(2)]
    records = [loss.losses(half) for half in halves]
    total = torch.stack([value for key, value in records[0].items() if key.startswith("loss_")]).sum()
    gradient = torch.autograd.grad(total, built.parameters(), allow_unused=True)
    stacked = {key: torch.stack([record[key].detach() for record in records]) for key in records[0]}
    return loss.metrics(stacked) | {"kl": loss.kl(stacked)}, gradient, records[0]


def assert_equal(overrides: list[str], built: ActorCritic) -> None:
    config = minibatch_loss(*overrides)
    batch = batch_of(built, 4, 64)
    config.build_advantage(built)(batch)
    batch["state_value"] += 0.2 * torch.randn_like(batch["state_value"])
    reference = config.build(built)
    expected, theirs, _ = measured(reference, batch, built)
    found, ours, _ = measured(fast_loss(reference, built), batch, built)
    assert found.keys() | {"loss/kl"} == expected.keys() | {"loss/kl"}  # which the learner logs of either's `kl`
    for key in found.keys() & expected.keys():
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4, msg=f"{key}: {found}, {expected}")
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_metrics_are_torchrls(kind: str, variant: str) -> None:
    assert_equal([f"loss={kind}", *VARIANTS[variant]], networks())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["clip_ppo", "kl_ppo", "a2c"])
def test_with_every_policy(kind: str, policy: str) -> None:
    assert_equal([f"loss={kind}", "loss.entropy_coeff=0.01"], networks(*POLICIES[policy]))


@pytest.mark.parametrize("policy", DISCRETE)
@pytest.mark.parametrize("kind", ["clip_ppo", "kl_ppo", "a2c"])
def test_with_discrete_actions(kind: str, policy: str) -> None:
    assert_equal([f"loss={kind}", "loss.entropy_coeff=0.01"], networks(*DISCRETE[policy], env="acrobot"))


@pytest.mark.parametrize("kind", ["clip_ppo", "kl_ppo", "a2c"])
@pytest.mark.parametrize("build", [gaussian_networks, unknown_networks])
@pytest.mark.filterwarnings("ignore:.*KL")
def test_with_actors_that_the_kernels_do_not_know(kind: str, build: Any) -> None:
    built = build()
    assert_equal([f"loss={kind}", "loss.entropy_coeff=0.01"], built)
    loss = fast_loss(minibatch_loss(f"loss={kind}").build(built), built)
    assert isinstance(loss.policy, DistributionTerms)
    known = networks()
    assert isinstance(fast_loss(minibatch_loss(f"loss={kind}").build(known), known).policy, FamilyTerms)


@pytest.mark.parametrize("own", [PPOLoss, KLPENPPOLoss, ReinforceLoss])
def test_other_modules_have_no_kernel(own: type[LossModule]) -> None:
    built = networks()
    module = own(actor_network=built.actor, critic_network=built.critic)
    with pytest.raises(UnsupportedError, match=own.__name__):
        fast_loss(Loss(module, built), built)


class WithPenalty(Loss):
    """A loss of the user's own over a module that has a kernel."""

    def losses(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """With a penalty on the weights."""
        return super().losses(minibatch) | {"loss_l2": next(self._actor.parameters()).square().sum()}


def test_what_is_the_users_own_is_not_replaced() -> None:
    built, others = networks(), networks()

    def ppo() -> ClipPPOLoss:
        return ClipPPOLoss(built.actor, built.critic, loss_critic_type="l2", functional=False)

    assert isinstance(fast_loss(Loss(ppo(), built), built), FastClipPPO)
    hooked, renamed = ppo(), ppo()
    hooked.register_forward_hook(lambda module, inputs, found: found)
    renamed.set_keys(advantage="mine")
    for loss, reason in (
        (WithPenalty(ppo(), built), "WithPenalty may compute more"),
        (Loss(hooked, built), "has hooks"),
        (Loss(renamed, built), "entries of other names"),
        (Loss(ClipPPOLoss(others.actor, built.critic, functional=False), built), "other networks"),
        (Loss(ClipPPOLoss(built.actor, others.critic, functional=False), built), "other networks"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            fast_loss(loss, built)


def test_an_actor_that_does_more_than_its_parts_is_called_as_it_is() -> None:
    assert Parts.of(networks().actor) is not None
    for part in range(3):
        actor = networks().actor
        (actor, *actor.module)[part].register_forward_hook(lambda module, inputs, found: found)
        assert Parts.of(actor) is None
    projected = networks().actor
    projected.module[1].safe = True
    assert Parts.of(projected) is None
    numbers = networks().actor
    numbers.module[1].distribution_kwargs = {"low": -1.0, "high": 1.0}
    assert Parts.of(numbers) is None


@pytest.mark.parametrize(
    ("own", "settings", "reason"),
    [
        (ClipPPOLoss, {"samples_mc_entropy": 4}, "samples_mc_entropy=4"),
        (ClipPPOLoss, {"separate_losses": True}, "separate_losses=True"),
        (A2CLoss, {"functional": True}, "functional=True"),
        (ClipPPOLoss, {"reduction": "sum"}, "reduction=sum"),
        (ClipPPOLoss, {"max_importance_ratio": 1.5}, "max_importance_ratio=1.5"),
    ],
)
def test_settings_that_a_kernel_does_not_have_leave_the_module_in_place(
    own: type[LossModule], settings: dict[str, Any], reason: str
) -> None:
    built = networks()
    module = own(built.actor, built.critic, **({"functional": False} | settings))
    with pytest.raises(UnsupportedError, match=reason):
        fast_loss(Loss(module, built), built)


def test_kl_of_categorical_distributions_is_torchs() -> None:
    old, new = torch.randn(5, 3), torch.randn(5, 3)
    expected = distributions.kl_divergence(Categorical(logits=old), Categorical(logits=new))
    torch.testing.assert_close(CategoricalFamily().kl((old,), (new,)), expected)


def test_a_clipped_ratio_has_no_gradient_even_where_it_overflows() -> None:
    log_prob, old, advantage = torch.tensor([95.0, 0.0]), torch.zeros(2), torch.tensor([1.0, 1.0])
    objective, _, slope = clipped_surrogate(log_prob, old, advantage, 0.8, 1.2)
    assert objective.item() == pytest.approx(-1.1)
    assert slope.tolist() == [0, -0.5]
