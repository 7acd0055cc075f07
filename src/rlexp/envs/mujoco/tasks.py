"""Gymnasium's MuJoCo tasks of version 5, and one of version 4, bit for bit (``gymnasium/envs/mujoco/*_v5.py``)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from rlexp.envs.mujoco.task import Array, MujocoTask, Rows, squares, uniform

Range = tuple[float, float]
_NO_BOUND: Range = (-math.inf, math.inf)


class HalfCheetah(MujocoTask):
    """Run forward on two legs in the plane."""

    def __init__(
        self,
        xml_file: str = "half_cheetah.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 0.1,
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight, self.ctrl_cost_weight = forward_reward_weight, ctrl_cost_weight
        self.reset_noise_scale = reset_noise_scale
        self.hidden = self._position_coordinates * exclude_current_positions_from_observation

    _position_coordinates: ClassVar[int] = 1

    @property
    def observation_size(self) -> int:
        """Positions, those of the world left out, and velocities."""
        return int(self.model.nq + self.model.nv - self.hidden)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions, normal noise on velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + self.reset_noise_scale * rng.standard_normal(self.model.nv)

    def observe(self, rows: Rows) -> Array:
        """Positions and velocities."""
        return np.concatenate((self.qpos[rows, self.hidden :], self.qvel[rows]), -1)

    def position(self, compared: Array) -> Array:
        """Along x."""
        return compared[:, 0]

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Forward velocity, less a cost of control."""
        forward = self.forward_reward_weight * ((after - before) / self.dt)
        found: Array = forward - self.ctrl_cost_weight * squares(action)
        return found


class Swimmer(HalfCheetah):
    """Swim forward in the plane."""

    _position_coordinates = 2

    def __init__(
        self,
        xml_file: str = "swimmer.xml",
        frame_skip: int = 4,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 1e-4,
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(
            xml_file, frame_skip, forward_reward_weight, ctrl_cost_weight, reset_noise_scale,
            exclude_current_positions_from_observation,
        )  # fmt: skip

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions and velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + uniform(rng, self.reset_noise_scale, self.model.nv)


class Walker2d(MujocoTask):
    """Walk forward on two legs in the plane without falling."""

    def __init__(
        self,
        xml_file: str = "walker2d_v5.xml",
        frame_skip: int = 4,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 1e-3,
        healthy_reward: float = 1.0,
        terminate_when_unhealthy: bool = True,
        healthy_z_range: Range = (0.8, 2.0),
        healthy_angle_range: Range = (-1.0, 1.0),
        reset_noise_scale: float = 5e-3,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight, self.ctrl_cost_weight = forward_reward_weight, ctrl_cost_weight
        self.healthy_reward, self.terminate_when_unhealthy = healthy_reward, terminate_when_unhealthy
        self.healthy_z_range, self.healthy_angle_range = healthy_z_range, healthy_angle_range
        self.reset_noise_scale = reset_noise_scale
        self.hidden = int(exclude_current_positions_from_observation)

    @property
    def observation_size(self) -> int:
        """Positions, that along x left out, and velocities."""
        return int(self.model.nq + self.model.nv - self.hidden)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions and velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + uniform(rng, self.reset_noise_scale, self.model.nv)

    def observe(self, rows: Rows) -> Array:
        """Positions, and velocities clipped to 10."""
        return np.concatenate((self.qpos[rows, self.hidden :], np.clip(self.qvel[rows], -10, 10)), -1)

    def position(self, compared: Array) -> Array:
        """Along x."""
        return compared[:, 0]

    def healthy(self) -> Array:
        """Whether each walker stands ``[num_envs]``."""
        (low_z, high_z), (low, high) = self.healthy_z_range, self.healthy_angle_range
        z, angle = self.qpos[:, 1], self.qpos[:, 2]
        found: Array = np.logical_and.reduce((low_z < z, z < high_z, low < angle, angle < high))
        return found

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Forward velocity and a bonus for standing, less a cost of control."""
        forward = self.forward_reward_weight * ((after - before) / self.dt)
        found: Array = forward + self.healthy() * self.healthy_reward - self.ctrl_cost_weight * squares(action)
        return found

    def terminated(self) -> Array:
        """Where it does not stand."""
        return ~self.healthy() & self.terminate_when_unhealthy


class Hopper(Walker2d):
    """Hop forward on one leg in the plane without falling."""

    def __init__(
        self,
        xml_file: str = "hopper.xml",
        frame_skip: int = 4,
        forward_reward_weight: float = 1.0,
        ctrl_cost_weight: float = 1e-3,
        healthy_reward: float = 1.0,
        terminate_when_unhealthy: bool = True,
        healthy_state_range: Range = (-100.0, 100.0),
        healthy_z_range: Range = (0.7, math.inf),
        healthy_angle_range: Range = (-0.2, 0.2),
        reset_noise_scale: float = 5e-3,
        exclude_current_positions_from_observation: bool = True,
    ) -> None:
        super().__init__(
            xml_file, frame_skip, forward_reward_weight, ctrl_cost_weight, healthy_reward, terminate_when_unhealthy,
            healthy_z_range, healthy_angle_range, reset_noise_scale, exclude_current_positions_from_observation,
        )  # fmt: skip
        self.healthy_state_range = healthy_state_range

    def healthy(self) -> Array:
        """Whether each hopper stands, and nothing of its state is extreme ``[num_envs]``."""
        low, high = self.healthy_state_range
        state = np.concatenate((self.qpos[:, 2:], self.qvel), -1)
        return super().healthy() & ((low < state) & (state < high)).all(-1)


class Ant(MujocoTask):
    """Walk forward on four legs without falling."""

    fields = ("qpos", "qvel", "xpos")
    compared = "xpos"

    def __init__(
        self,
        xml_file: str = "ant.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1,
        ctrl_cost_weight: float = 0.5,
        contact_cost_weight: float = 5e-4,
        healthy_reward: float = 1.0,
        main_body: int | str = 1,
        terminate_when_unhealthy: bool = True,
        healthy_z_range: Range = (0.2, 1.0),
        contact_force_range: Range = (-1.0, 1.0),
        reset_noise_scale: float = 0.1,
        exclude_current_positions_from_observation: bool = True,
        include_cfrc_ext_in_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight, self.ctrl_cost_weight = forward_reward_weight, ctrl_cost_weight
        self.contact_cost_weight, self.contact_force_range = contact_cost_weight, contact_force_range
        self.healthy_reward, self.terminate_when_unhealthy = healthy_reward, terminate_when_unhealthy
        self.healthy_z_range, self.reset_noise_scale = healthy_z_range, reset_noise_scale
        self.hidden = 2 * exclude_current_positions_from_observation
        self.include_cfrc_ext = include_cfrc_ext_in_observation
        self.needs_contact_forces = include_cfrc_ext_in_observation or contact_cost_weight != 0
        self.main_body = self.model.body(main_body).id

    @property
    def observation_size(self) -> int:
        """Positions, those along x and y left out, velocities and contact forces."""
        forces = 6 * (self.model.nbody - 1) * self.include_cfrc_ext
        return int(self.model.nq + self.model.nv - self.hidden + forces)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions, normal noise on velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + self.reset_noise_scale * rng.standard_normal(self.model.nv)

    def observe(self, rows: Rows) -> Array:
        """Positions, velocities and clipped contact forces."""
        parts = [self.qpos[rows, self.hidden :], self.qvel[rows]]
        if self.include_cfrc_ext:
            forces = np.clip(self.contact_forces[rows, 1:], *self.contact_force_range)
            parts.append(forces.reshape(len(forces), -1))
        return np.concatenate(parts, -1)

    def position(self, compared: Array) -> Array:
        """The main body's, along x."""
        return compared[:, self.main_body, 0]

    def healthy(self) -> Array:
        """Whether each ant is finite and at a sound height ``[num_envs]``."""
        low, high = self.healthy_z_range
        z = self.qpos[:, 2]
        finite = np.isfinite(np.concatenate((self.qpos, self.qvel), -1)).all(-1)
        found: Array = np.logical_and.reduce((finite, low <= z, z <= high))
        return found

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Forward velocity and a bonus for standing, less costs of control and contact."""
        rewards = ((after - before) / self.dt) * self.forward_reward_weight + self.healthy() * self.healthy_reward
        contact = self.contact_cost_weight * squares(np.clip(self.contact_forces, *self.contact_force_range))
        found: Array = rewards - (self.ctrl_cost_weight * squares(action) + contact)
        return found

    def terminated(self) -> Array:
        """Where it does not stand."""
        return ~self.healthy() & self.terminate_when_unhealthy


class _HumanoidBody(MujocoTask):
    """What the humanoid's tasks observe."""

    fields = ("qpos", "qvel", "xipos", "cinert", "cvel", "qfrc_actuator")
    compared = "xipos"

    xipos: Array
    cinert: Array
    cvel: Array
    qfrc_actuator: Array
    reset_noise_scale: float

    def _observes(self, *, positions: bool, cinert: bool, cvel: bool, qfrc_actuator: bool, cfrc_ext: bool) -> None:
        # Gymnasium leaves an entry out unless the setting is True itself.
        self._hidden = 2 * (not positions)
        self._included = (cinert is True, cvel is True, qfrc_actuator is True, cfrc_ext is True)

    @property
    def observation_size(self) -> int:
        """Positions, those along x and y left out, velocities, inertias, body velocities and forces."""
        model, bodies = self.model, self.model.nbody - 1
        sizes = (10 * bodies, 6 * bodies, model.nv - 6, 6 * bodies)
        included = sum(size for size, there in zip(sizes, self._included, strict=True) if there)
        return int(model.nq + model.nv - self._hidden + included)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions and velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + uniform(rng, self.reset_noise_scale, self.model.nv)

    def observe(self, rows: Rows) -> Array:
        """Positions, velocities, inertias, body velocities and forces."""
        qpos, qvel = self.qpos[rows, self._hidden :], self.qvel[rows]
        entries = ((self.cinert, 1), (self.cvel, 1), (self.qfrc_actuator, 6), (self.contact_forces, 1))
        included = [field[rows, first:] for (field, first), there in zip(entries, self._included, strict=True) if there]
        return np.concatenate((qpos, qvel, *(part.reshape(len(qpos), -1) for part in included)), -1)


class Humanoid(_HumanoidBody):
    """Walk forward on two legs without falling."""

    def __init__(
        self,
        xml_file: str = "humanoid.xml",
        frame_skip: int = 5,
        forward_reward_weight: float = 1.25,
        ctrl_cost_weight: float = 0.1,
        contact_cost_weight: float = 5e-7,
        contact_cost_range: Range = (-math.inf, 10.0),
        healthy_reward: float = 5.0,
        terminate_when_unhealthy: bool = True,
        healthy_z_range: Range = (1.0, 2.0),
        reset_noise_scale: float = 1e-2,
        exclude_current_positions_from_observation: bool = True,
        include_cinert_in_observation: bool = True,
        include_cvel_in_observation: bool = True,
        include_qfrc_actuator_in_observation: bool = True,
        include_cfrc_ext_in_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.forward_reward_weight, self.ctrl_cost_weight = forward_reward_weight, ctrl_cost_weight
        self.contact_cost_weight, self.contact_cost_range = contact_cost_weight, contact_cost_range
        self.healthy_reward, self.terminate_when_unhealthy = healthy_reward, terminate_when_unhealthy
        self.healthy_z_range, self.reset_noise_scale = healthy_z_range, reset_noise_scale
        self._observes(
            positions=not exclude_current_positions_from_observation, cinert=include_cinert_in_observation,
            cvel=include_cvel_in_observation, qfrc_actuator=include_qfrc_actuator_in_observation,
            cfrc_ext=include_cfrc_ext_in_observation,
        )  # fmt: skip
        self.needs_contact_forces = include_cfrc_ext_in_observation or contact_cost_weight != 0
        self.mass = self.model.body_mass[:, None].copy()

    def position(self, compared: Array) -> Array:
        """Of the centre of mass, along x."""
        weighted = self.mass[:, 0] * compared[:, :, 0]
        total = np.add.accumulate(weighted, 1)[:, -1]  # in Gymnasium's order, which a sum would not keep
        return np.asarray(total / np.sum(self.mass))

    def healthy(self) -> Array:
        """Whether each humanoid is at a sound height ``[num_envs]``."""
        low, high = self.healthy_z_range
        z = self.qpos[:, 2]
        return np.logical_and(low < z, z < high)

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Forward velocity and a bonus for standing, less costs of control and contact."""
        rewards = self.forward_reward_weight * ((after - before) / self.dt) + self.healthy() * self.healthy_reward
        contact = np.clip(self.contact_cost_weight * squares(self.contact_forces), *self.contact_cost_range)
        found: Array = rewards - (self.ctrl_cost_weight * squares(self.ctrl) + contact)
        return found

    def terminated(self) -> Array:
        """Where it does not stand."""
        return ~self.healthy() & self.terminate_when_unhealthy


class HumanoidStandup(_HumanoidBody):
    """Get up from the ground."""

    def __init__(
        self,
        xml_file: str = "humanoidstandup.xml",
        frame_skip: int = 5,
        uph_cost_weight: float = 1,
        ctrl_cost_weight: float = 0.1,
        impact_cost_weight: float = 0.5e-6,
        impact_cost_range: Range = (-math.inf, 10.0),
        reset_noise_scale: float = 1e-2,
        exclude_current_positions_from_observation: bool = True,
        include_cinert_in_observation: bool = True,
        include_cvel_in_observation: bool = True,
        include_qfrc_actuator_in_observation: bool = True,
        include_cfrc_ext_in_observation: bool = True,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.uph_cost_weight = uph_cost_weight  # Gymnasium takes it and never uses it
        self.ctrl_cost_weight, self.impact_cost_weight = ctrl_cost_weight, impact_cost_weight
        self.impact_cost_range, self.reset_noise_scale = impact_cost_range, reset_noise_scale
        self._observes(
            positions=not exclude_current_positions_from_observation, cinert=include_cinert_in_observation,
            cvel=include_cvel_in_observation, qfrc_actuator=include_qfrc_actuator_in_observation,
            cfrc_ext=include_cfrc_ext_in_observation,
        )  # fmt: skip
        self.needs_contact_forces = include_cfrc_ext_in_observation or impact_cost_weight != 0

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Height, less costs of control and impact."""
        height = (self.qpos[:, 2] - 0) / self.model.opt.timestep
        impact = np.clip(self.impact_cost_weight * squares(self.contact_forces), *self.impact_cost_range)
        found: Array = height - self.ctrl_cost_weight * squares(self.ctrl) - impact + 1
        return found


class InvertedPendulum(MujocoTask):
    """Balance a pole on a cart."""

    def __init__(
        self, xml_file: str = "inverted_pendulum.xml", frame_skip: int = 2, reset_noise_scale: float = 0.01
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reset_noise_scale = reset_noise_scale

    @property
    def observation_size(self) -> int:
        """Positions and velocities."""
        return int(self.model.nq + self.model.nv)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions and velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + uniform(rng, self.reset_noise_scale, self.model.nv)

    def observe(self, rows: Rows) -> Array:
        """Positions and velocities."""
        return np.concatenate((self.qpos[rows], self.qvel[rows]), -1)

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """1 while the pole stands."""
        return (~self.terminated()).astype(np.float64)

    def terminated(self) -> Array:
        """Where the pole leans by more than 0.2 rad."""
        finite = np.isfinite(self.qpos).all(-1) & np.isfinite(self.qvel).all(-1)
        return ~finite | (np.abs(self.qpos[:, 1]) > 0.2)


class InvertedDoublePendulum(MujocoTask):
    """Balance two poles, one on the other, on a cart."""

    fields = ("qpos", "qvel", "site_xpos", "qfrc_constraint")

    site_xpos: Array
    qfrc_constraint: Array
    constraints: ClassVar[int] = 1

    def __init__(
        self,
        xml_file: str = "inverted_double_pendulum.xml",
        frame_skip: int = 5,
        healthy_reward: float = 10.0,
        reset_noise_scale: float = 0.1,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.healthy_reward, self.reset_noise_scale = healthy_reward, reset_noise_scale

    @property
    def observation_size(self) -> int:
        """Position of the cart, sines and cosines of the angles, velocities and constraint forces."""
        return int(1 + 2 * (self.model.nq - 1) + self.model.nv + self.constraints)

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Uniform noise on positions, normal noise on velocities."""
        qpos = self.init_qpos + uniform(rng, self.reset_noise_scale, self.model.nq)
        return qpos, self.init_qvel + rng.standard_normal(self.model.nv) * self.reset_noise_scale

    def observe(self, rows: Rows) -> Array:
        """Position of the cart, sines and cosines of the angles, velocities and constraint forces clipped to 10."""
        qpos = self.qpos[rows]
        velocity = np.clip(self.qvel[rows], -10, 10)
        force = np.clip(self.qfrc_constraint[rows], -10, 10)[:, : self.constraints]
        return np.concatenate((qpos[:, :1], np.sin(qpos[:, 1:]), np.cos(qpos[:, 1:]), velocity, force), -1)

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """A bonus for standing, less penalties of the tip's distance from upright and of angular velocities."""
        return self._bonus() - self._distance_penalty() - self._velocity_penalty()

    def terminated(self) -> Array:
        """Where the tip is 1 m high or lower."""
        low: Array = self.site_xpos[:, 0, 2] <= 1
        return low

    def _bonus(self) -> Array:
        return self.healthy_reward * (~self.terminated()).astype(np.int64)

    def _distance_penalty(self) -> Array:
        x, y = self.site_xpos[:, 0, 0], self.site_xpos[:, 0, 2]
        penalty: Array = 0.01 * scalar_squares(x) + scalar_squares(y - 2)
        return penalty

    def _velocity_penalty(self) -> Array:
        v1, v2 = self.qvel[:, 1], self.qvel[:, 2]
        penalty: Array = 1e-3 * scalar_squares(v1) + 5e-3 * scalar_squares(v2)
        return penalty


class InvertedDoublePendulumV4(InvertedDoublePendulum):
    """Version 4: all constraint forces are observed, and the step in which the poles fall earns its bonus too."""

    constraints = 3

    def __init__(self) -> None:
        super().__init__()

    def _bonus(self) -> Array:
        return np.full(len(self.qpos), 10)


class Reacher(MujocoTask):
    """Move the tip of a two-jointed arm to a target."""

    fields = ("qpos", "qvel", "xpos")

    xpos: Array

    def __init__(
        self,
        xml_file: str = "reacher.xml",
        frame_skip: int = 2,
        reward_dist_weight: float = 1,
        reward_control_weight: float = 1,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reward_dist_weight, self.reward_control_weight = reward_dist_weight, reward_control_weight
        self.fingertip, self.target = (self.model.body(name).id for name in ("fingertip", "target"))

    @property
    def observation_size(self) -> int:
        """Cosines and sines of the angles, the target, angular velocities and the tip's offset from it."""
        return 10

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Noise on the arm, and a target within 0.2 m of the origin."""
        qpos = rng.uniform(low=-0.1, high=0.1, size=self.model.nq) + self.init_qpos
        while np.linalg.norm(goal := rng.uniform(low=-0.2, high=0.2, size=2)) >= 0.2:
            pass
        qpos[-2:] = goal
        qvel = self.init_qvel + rng.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-2:] = 0
        return qpos, qvel

    def observe(self, rows: Rows) -> Array:
        """Cosines and sines of the angles, the target, angular velocities and the tip's offset from it."""
        qpos, xpos = self.qpos[rows], self.xpos[rows]
        offset = (xpos[:, self.fingertip] - xpos[:, self.target])[:, :2]
        parts = (np.cos(qpos[:, :2]), np.sin(qpos[:, :2]), qpos[:, 2:], self.qvel[rows, :2], offset)
        return np.concatenate(parts, -1)

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """The negative distance to the target, less a cost of control."""
        distance = -norms(self.xpos[:, self.fingertip] - self.xpos[:, self.target]) * self.reward_dist_weight
        return distance + -squares(action) * self.reward_control_weight


class Pusher(MujocoTask):
    """Push an object to a goal with a seven-jointed arm."""

    fields = ("qpos", "qvel", "xpos")

    xpos: Array

    def __init__(
        self,
        xml_file: str = "pusher_v5.xml",
        frame_skip: int = 5,
        reward_near_weight: float = 0.5,
        reward_dist_weight: float = 1,
        reward_control_weight: float = 0.1,
    ) -> None:
        super().__init__(xml_file, frame_skip)
        self.reward_near_weight, self.reward_dist_weight = reward_near_weight, reward_dist_weight
        self.reward_control_weight = reward_control_weight
        self.tip, self.object, self.goal = (self.model.body(name).id for name in ("tips_arm", "object", "goal"))

    @property
    def observation_size(self) -> int:
        """Angles and angular velocities of the arm, and positions of its tip, the object and the goal."""
        return 23

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The object at random, at least 0.17 m from the goal."""
        qpos = self.init_qpos.copy()
        while True:
            cylinder = np.concatenate([rng.uniform(low=-0.3, high=0, size=1), rng.uniform(low=-0.2, high=0.2, size=1)])
            if np.linalg.norm(cylinder) > 0.17:
                break
        qpos[-4:-2], qpos[-2:] = cylinder, 0
        qvel = self.init_qvel + rng.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-4:] = 0
        return qpos, qvel

    def observe(self, rows: Rows) -> Array:
        """Angles and angular velocities of the arm, and positions of its tip, the object and the goal."""
        xpos = self.xpos[rows]
        bodies = (xpos[:, self.tip], xpos[:, self.object], xpos[:, self.goal])
        return np.concatenate((self.qpos[rows, :7], self.qvel[rows, :7], *bodies), -1)

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Less the distances from tip to object and from object to goal and a cost of control."""
        near = -norms(self.xpos[:, self.object] - self.xpos[:, self.tip]) * self.reward_near_weight
        distance = -norms(self.xpos[:, self.object] - self.xpos[:, self.goal]) * self.reward_dist_weight
        return distance + -squares(action) * self.reward_control_weight + near


def scalar_squares(values: Array) -> Array:
    """``value**2`` of each of ``[n]``: of a scalar by the C library's ``pow``, which can differ in the last bit."""
    return np.array([value**2 for value in values])


def norms(vectors: Array) -> Array:
    """Euclidean norms ``[n]`` of vectors ``[n, size]``, each as ``np.linalg.norm`` computes it for one vector."""
    return np.sqrt([vector.dot(vector) for vector in vectors])


TASKS: dict[str, type[MujocoTask]] = {
    "Ant-v5": Ant,
    "HalfCheetah-v5": HalfCheetah,
    "Hopper-v5": Hopper,
    "Humanoid-v5": Humanoid,
    "HumanoidStandup-v5": HumanoidStandup,
    "InvertedDoublePendulum-v4": InvertedDoublePendulumV4,
    "InvertedDoublePendulum-v5": InvertedDoublePendulum,
    "InvertedPendulum-v5": InvertedPendulum,
    "Pusher-v5": Pusher,
    "Reacher-v5": Reacher,
    "Swimmer-v5": Swimmer,
    "Walker2d-v5": Walker2d,
}
"""The tasks by Gymnasium's ids."""
