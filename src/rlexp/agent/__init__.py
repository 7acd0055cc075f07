"""A trained agent, loaded from its checkpoint: evaluation, video, export."""

from rlexp.agent.agent import Agent
from rlexp.agent.policy import Policy, UnfaithfulPolicyError, load_policy

__all__ = ["Agent", "Policy", "UnfaithfulPolicyError", "load_policy"]
