"""Stand-ins that equal torchrl's parts and are faster: what ``kernels=auto`` puts in their place.

Each module names its reference and has a test that holds it to it. `rlexp.kernels.select` decides which are taken, and
nothing outside this folder asks what a network or an environment is made of.
"""
