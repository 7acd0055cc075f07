"""Gymnasium's simulators: made, stepped in this process or in workers, saved, and batched as a torchrl environment."""
