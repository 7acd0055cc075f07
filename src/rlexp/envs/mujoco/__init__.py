"""MuJoCo tasks on ``mujoco.batch``: threads in C++ step the simulations, NumPy observes and rewards them."""
