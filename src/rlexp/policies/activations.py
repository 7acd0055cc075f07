"""The nonlinearities that a setting may name. Imports no torch."""

ACTIVATIONS = ("CELU", "ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Softplus", "Tanh")
