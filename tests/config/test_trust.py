"""Out of a config that is not the user's own, only what rlexp itself builds is built (docs/security.md)."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY

from rlexp import Trainer
from rlexp.agent import Agent
from rlexp.cli.evaluate import evaluate
from rlexp.cli.export import export
from rlexp.cli.search import search
from rlexp.cli.train import train
from rlexp.cli.verify import verify
from rlexp.config import ConfigError, Node, load
from rlexp.config.spec import locate
from rlexp.config.trust import ALLOWED
from rlexp.experiment import load_config, read_config
from rlexp.runs import checkpoint
from rlexp.runs.resume import open_run
from rlexp.sweeps import run_jobs

MARKER = "executed"
ELASTIC = "torch.distributed.elastic.multiprocessing.subprocess_handler"

# What has been used to run something out of a file of settings: each would leave a file, or import the module evil.
GADGETS: dict[str, dict[str, Any]] = {
    "os.system": {"command": f"touch {MARKER}"},
    "posix.system": {"command": f"touch {MARKER}"},
    "subprocess.Popen": {"args": ["touch", MARKER]},
    "subprocess.run": {"args": ["touch", MARKER]},
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.Popen": {
        "args": ["touch", MARKER]
    },
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler": {
        "entrypoint": "touch",
        "args": [MARKER],
    },
    "torch.utils.cpp_extension.load": {"name": "evil", "sources": ["evil.cpp"]},
    "torch.utils.cpp_extension.load_inline": {"name": "evil", "cpp_sources": ""},
    "torch.hub.load": {"repo_or_dir": ".", "model": "evil", "source": "local"},
    "torch.hub.load_state_dict_from_url": {"url": "http://localhost/evil"},
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.jit.load": {"f": "evil.pt"},
    "torch.package.PackageImporter": {"file_or_buffer": "evil.pt"},
    "torch.nn.Module.load_state_dict": {},
    "torch.nn.modules.module.Module": {},
    "torch.nn.DataParallel": {"module": None},
    "torch.nn.utils.parametrize.register_parametrization": {},
    "torch.optim.lr_scheduler.LambdaLR": {"lr_lambda": "evil.f"},
    "torch.multiprocessing.spawn": {"fn": "evil.f"},
    "torch.multiprocessing.get_context": {"method": "spawn"},
    "torch.serialization.load": {"f": "evil.pt"},
    "numpy.load": {"file": "evil.npy", "allow_pickle": True},
    "numpy.f2py.compile": {"source": ""},
    "pickle.loads": {"data": ""},
    "importlib.import_module": {"name": "evil"},
    "runpy.run_path": {"path_name": "evil.py"},
    "builtins.exec": {"source": "import evil"},
    "builtins.eval": {"source": "__import__('evil')"},
    "functools.partial": {"func": "os.system"},
    "operator.attrgetter": {"attr": "system"},
    "multiprocessing.Process": {"target": "evil.f"},
    "gymnasium.make": {"id": "evil:X-v0"},
    "gymnasium.make_vec": {"id": "evil:X-v0"},
    "gymnasium.register": {"id": "X-v0", "entry_point": "evil:f"},
    "gymnasium.envs.registration.load_env_creator": {"name": "evil:f"},
    "gymnasium.vector.AsyncVectorEnv": {"env_fns": []},
    "gymnasium.wrappers.TransformObservation": {"func": "evil.f"},
    "gymnasium.utils.play.play": {"env": "evil:X-v0"},
    "torchrl.envs.EnvCreator": {"create_env_fn": "evil.f"},
    "torchrl.envs.ParallelEnv": {"num_workers": 1, "create_env_fn": "evil.f"},
    "torchrl.envs.gym_backend": {"submodule": "evil"},
    "torchrl.envs.set_gym_backend": {"backend": "evil"},
    "torchrl.envs.R3MTransform": {"model_name": "resnet18", "in_keys": ["pixels"], "download": True},
    "torchrl.envs.VIPTransform": {"model_name": "resnet50", "download": True},
    "torchrl.envs.VC1Transform": {"model_name": "evil"},
    "torchrl.envs.Tokenizer": {"tokenizer": "evil/model"},
    "torchrl.envs.UnaryTransform": {"fn": "evil.f"},
    "torchrl.envs.ConditionalSkip": {"cond": "evil.f"},
    "torchrl.envs.TensorDictPrimer": {"default_value": "evil.f"},
    "torchrl.envs.EndOfLifeTransform": {"eol_attribute": "unwrapped.close"},
    "torchrl.envs.llm.transforms.MCPToolTransform": {"servers": {"a": {"command": "touch", "args": [MARKER]}}},
    "torchrl.envs.llm.transforms.PythonInterpreter": {},
    "tensordict.load_memmap": {"prefix": "evil"},
    "tensordict.TensorDict.load": {"prefix": "evil"},
    "ray.init": {"runtime_env": {"worker_process_setup_hook": "evil.f"}},
    "hydra.utils.instantiate": {"config": {}},
    "rlexp.cli.train.train": {"arguments": ["trust=[evil]"]},
    "rlexp.files.write_text": {"path": MARKER, "text": ""},
    "rlexp.config.spec.locate": {"path": "evil.f"},
    "rlexp.config.spec.Node": {"target": "os.system", "arguments": {}},
    "rlexp.training.trainer.Trainer": {},
    "evil.f": {},
}


def forms(target: str, arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to put a gadget into a config: each the setting's path, and the change."""
    node = {"_target_": target, **arguments}
    yield "env.transforms.x", node
    yield "env.transforms.x", {"_target_": "torchrl.envs.RewardScaling", "loc": 0.0, "scale": node}
    yield "env.transforms.x", {"_target_": "torchrl.envs.Compose", "transforms": [node]}
    yield "callbacks.x", node
    yield "policy.actor_network", node
    yield "policy.encoders.x", node
    yield "policy.actor_network", {"_target_": "torchrl.modules.MLP", "activation_class": node}
    yield "env.kwargs.x", node
    yield "env.kwargs.x", {"deep": [{"er": node}]}
    yield "env", node


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    node = values
    *above, last = path.split(".")
    for name in above:
        node = node[name]
    node[last] = value
    return values


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    values: dict[str, Any] = load_config(["env=pendulum", "logger=none"]).to_dict()
    return values


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that leaves a mark when it is imported, where the command runs and Python looks."""
    sys.modules.pop("evil", None)  # imported by a test before, which was asked to trust it
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / MARKER)!r}, 'w')\ndef f(*a, **k): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("target", GADGETS)
def test_no_gadget_is_reached(plain: dict[str, Any], target: str, evil: Path) -> None:
    # What is blocked is the target, wherever it stands: two places of ten for each, and each for many targets.
    first = list(GADGETS).index(target) % 5
    for path, value in list(forms(target, GADGETS[target]))[first::5]:
        with pytest.raises(ConfigError) as caught:
            read_config(changed(plain, path, value), trust=[])
        named = [problem for problem in caught.value.problems if problem.key.startswith(path)]
        assert named, (path, caught.value)
        assert any("is blocked" in problem.message and "trust=[" in problem.message for problem in named), named
    assert not (evil / MARKER).exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["env=torchrl", "env.name=x", "env.make={_target_: torchrl.envs.GymEnv, env_name: Pendulum-v1}"], "env.make"),
        (["env=mujoco", "env.task={_target_: rlexp.envs.mujoco.tasks.Ant}"], "env.task"),
        (["optim=any", "optim.optimizer={_target_: torch.optim.RMSprop}"], "optim.optimizer"),
        (["loss=any", "loss.loss_module={_target_: torchrl.objectives.ClipPPOLoss}"], "loss.loss_module"),
        (["env=pendulum"], "optim.schedule"),
        (["env=pendulum"], "policy.actor_network"),
        (["env=pendulum"], "policy.critic_network"),
        (["env=pendulum"], "policy.encoders.x"),
        (["env=pendulum"], "env.transforms.x"),
        (["env=pendulum"], "callbacks.x"),
    ],
)
@pytest.mark.parametrize("trust", [[], None], ids=["strangers", "own"])
def test_a_mapping_without_a_target_is_no_node(overrides: list[str], path: str, trust: list[str] | None) -> None:
    # It has the names of a Node's own fields, so that its target would be called although none was checked.
    values = load_config([*overrides, "logger=none"]).to_dict()
    forged = {"target": "subprocess.Popen", "arguments": {"args": ["touch", MARKER]}}
    with pytest.raises(ConfigError, match=rf"{path}(.|\n)*has no _target_|{path}(.|\n)*a node with a _target_"):
        read_config(changed(values, path, forged), trust=trust)


@pytest.mark.parametrize(
    ("path", "value", "package"),
    [
        ("env.id", "evil:Pendulum-v1", "evil"),
        ("env.kwargs.xml_file", "/tmp/evil.xml", "gymnasium"),
        ("env.kwargs.entry_point", "evil:f", "gymnasium"),
        ("env.kwargs.hook", "evil.f", "gymnasium"),
        ("env.kwargs.list", [1, ["http://evil"]], "gymnasium"),
        ("env.kwargs.a", {"b/c": 1}, "gymnasium"),
        ("env.transforms.double_to_float", {"_target_": "torchrl.envs.DoubleToFloat", "x": "evil.f"}, "torchrl"),
        ("policy._target_", "evil.Policy", "evil"),
        ("policy._target_", "rlexp.cli.train.train", "rlexp"),
        ("logger._target_", "subprocess.Popen", "subprocess"),
        ("optim.schedule", {"_target_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": "evil.f"}, "torch"),
    ],
)
def test_an_argument_that_names_code_is_an_import(
    plain: dict[str, Any], path: str, value: Any, package: str, evil: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(changed(plain, path, value), trust=[])
    (problem,) = [problem for problem in caught.value.problems if problem.key.startswith(path)]
    assert "is blocked" in problem.message
    assert f"say trust=[{package}]" in problem.message
    assert not (evil / MARKER).exists()


RAY = [
    {"runtime_env": {"worker_process_setup_hook": "evil.f"}},
    {"runtime_env": {"py_executable": "touch executed;python"}},
    {"_temp_dir": "/tmp/evil"},
    {"_system_config": {"x": 1}},
    {"namespace": "evil:f"},
    {"address": "ray://evil:10001"},
]


def test_a_strangers_run_trusts_nothing_for_its_teacher() -> None:
    overrides = ["env=pendulum", "logger=none", "loss=distill", "loss.teacher=x", "loss.trust=[evil]"]
    values = load_config(overrides).to_dict()
    with pytest.raises(ConfigError, match=r"loss\.trust\.0=evil(.|\n)*is blocked.*trust=\[evil\]"):
        read_config(values, trust=[])
    read_config(values, trust=["evil"])


@pytest.mark.parametrize("init", RAY)
def test_ray_starts_nothing_of_a_strangers(init: dict[str, Any]) -> None:
    values = load_config(["env=pendulum", "logger=none", "collector=ray"]).to_dict()
    read_config(values, trust=[])
    values["collector"]["init"] = {"num_cpus": 2}
    read_config(values, trust=[])
    hostile = changed(values, "collector.init", init)
    with pytest.raises(ConfigError, match=r"collector\.init.*\n.*trust=\[ray\]"):
        read_config(hostile, trust=[])
    read_config(hostile, trust=["ray"])
    with pytest.raises(ConfigError, match=r"collector\.address"):
        read_config(changed(values, "collector.address", "10.0.0.5:6379"), trust=[])


@pytest.mark.parametrize(
    "make",
    [
        {"env_name": "evil:X-v0"},
        {"env_name": "Pendulum-v1", "backend": "evil"},
        {"env_name": "Pendulum-v1", "wrappers": ["evil.f"]},
        {"env_name": "../evil"},
    ],
)
def test_torchrls_environments_take_only_what_is_known(make: dict[str, Any], evil: Path) -> None:
    values = load_config(["env=torchrl", "env.name=x", "logger=none",
                          "env.make={_target_: torchrl.envs.GymEnv, env_name: Pendulum-v1}"]).to_dict()  # fmt: skip
    read_config(values, trust=[])
    with pytest.raises(ConfigError, match="is blocked"):
        read_config(changed(values, "env.make", {"_target_": "torchrl.envs.GymEnv", **make}), trust=[])
    assert not (evil / MARKER).exists()


def test_every_listed_class_is_there_and_takes_no_callable_that_it_must_have() -> None:
    for path in sorted(ALLOWED):
        found = locate(path)
        assert inspect.isclass(found), path
        for parameter in inspect.signature(found).parameters.values():
            required = parameter.default is parameter.empty
            assert not (required and "Callable" in str(parameter.annotation)), (path, parameter)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["env=hopper", "experiment=tutorial"],
        ["env=acrobot"],
        ["env=torchrl", "env.name=x", "env.make={_target_: torchrl.envs.GymEnv, env_name: Pendulum-v1}"],
        ["env=mujoco", "env.task={_target_: rlexp.envs.mujoco.tasks.Ant, healthy_reward: 0.5}"],
        ["collector=multi_sync", "env=pendulum"],
        ["loss=any", "loss.loss_module={_target_: torchrl.objectives.ClipPPOLoss}"],
        ["optim=any", "optim.optimizer={_target_: torch.optim.RMSprop, alpha: 0.95}"],
        ["optim.schedule={_target_: rlexp.optim.schedules.KLAdaptive}"],
        ["policy.actor_network={_target_: torchrl.modules.MLP, num_cells: [8]}"],
        ["env.kwargs.render_mode=rgb_array", "env.kwargs.reset_noise_scale=0.1"],
    ],
)
def test_what_rlexp_ships_needs_no_trust(overrides: list[str]) -> None:
    values = load_config([*overrides, "logger=none"]).to_dict()
    assert read_config(values, trust=[]).to_dict() == values
    assert read_config(json.loads(json.dumps(values)), trust=[]).to_dict() == values


def test_trust_is_for_what_a_package_defines_and_not_for_what_it_imported(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trusted_lab.py").write_text(
        "from subprocess import Popen\nfrom torchrl.envs import DoubleToFloat\ndef made(**k): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def node(name: str) -> dict[str, Any]:
        return changed(plain, "env.transforms.x", {"_target_": f"trusted_lab.{name}", "in_keys": ["observation"]})

    found = read_config(node("made"), trust=["trusted_lab"]).env.transforms["x"]
    assert found == Node(target="trusted_lab.made", arguments={"in_keys": ["observation"]})  # a function, as named
    with pytest.raises(ConfigError, match="trusted_lab"):
        read_config(node("made"), trust=["trusted"])
    with pytest.raises(ConfigError, match=r"subprocess\.Popen"):
        read_config(node("Popen"), trust=["trusted_lab"])


def test_one_text_is_the_name_of_one_package(plain: dict[str, Any], evil: Path) -> None:
    values = changed(plain, "env.transforms.x", {"_target_": "evil.f"})
    assert read_config(values, "evil").env.transforms["x"].target == "evil.f"
    for values in (changed(plain, "env.transforms.x", {"_target_": "e.f"}), changed(plain, "threads", 10_000)):
        with pytest.raises(ConfigError, match=r"is blocked|may not ask for"):
            read_config(values, "evil_rlexp")


def test_the_users_own_config_is_free(plain: dict[str, Any]) -> None:
    values = changed(plain, "callbacks.x", {"_target_": "subprocess.Popen", "args": ["true"]})
    assert read_config(values).callbacks["x"].target == "subprocess.Popen"


def forge(run: Path, path: str, value: Any) -> None:
    """Change a setting in everything that a run's folder holds, with valid digests, as a stranger can."""
    import yaml

    from rlexp.runs.manifest import _digest

    for manifest in run.glob("checkpoints/[0-9]*/manifest.json"):
        values = json.loads(manifest.read_text())
        values.pop("sha256")
        values["config"] = changed(values["config"], path, value)
        manifest.write_text(json.dumps(values | {"sha256": _digest(values)}))
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump(changed(yaml.safe_load(config.read_text()), path, value)))


COMMANDS: dict[str, Callable[[Path], object]] = {
    "eval": lambda run: evaluate([f"checkpoint={run}", "episodes=1"]),
    "video": lambda run: evaluate([f"checkpoint={run}", "video=true"]),
    "export": lambda run: export([f"checkpoint={run}", "format=torch"]),
    "verify": lambda run: verify([str(run)]),
    "load_policy": lambda run: Agent(run),
    "resume": lambda run: train([f"resume={run}", "total_frames=2048"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_executes_what_a_run_names(command: str, run_dir: Path, evil: Path) -> None:
    for path, value in (
        ("callbacks.x", {"_target_": "subprocess.Popen", "args": ["touch", MARKER]}),
        ("env.transforms.x", {"_target_": "evil.f"}),
        ("env.id", "evil:Pendulum-v1"),
    ):
        run = evil / "forged"
        shutil.copytree(run_dir, run)
        forge(run, path, value)
        with pytest.raises(ConfigError, match="is blocked"):
            COMMANDS[command](run)
        shutil.rmtree(run)
        assert not (evil / MARKER).exists()


def test_a_warm_start_builds_nothing_of_the_other_run(run_dir: Path, evil: Path) -> None:
    forge(run_dir, "callbacks.x", {"_target_": "evil.f"})
    with closing(Trainer(load_config([*TINY, f"warm_start={run_dir}", "logger=none"]), evil / "new")) as trainer:
        saved = checkpoint.load(run_dir).state.actor
        assert all(torch.equal(value, saved[name]) for name, value in trainer.networks.actor.state_dict().items())
    assert not (evil / MARKER).exists()


DECODED = "'${oc.decode:\"{_target_: evil.f}\"}'"
PLANS = [
    ({"jobs": [["env=pendulum", "callbacks.x._target_=evil.f"]]}, "is blocked"),
    ({"jobs": [["env=gym", "env.id=evil:X-v0"]]}, "is blocked"),
    (
        {"jobs": [["env=pendulum", "trust=[evil]"]]},
        "not taken from a resumed folder",
    ),  # which its checkpoint would then have
    ({"jobs": [["env=pendulum", "++trust=[evil]"]]}, "not taken from a resumed folder"),
    ({"jobs": [["env=pendulum", "hydra.searchpath=[pkg://evil]"]]}, "not taken from a resumed folder"),
    ({"jobs": [["env=pendulum", "++env.transforms.reward_sum.in_keys={reward:{id:'evil:x'}}"]]}, "is blocked"),
    ({"jobs": [["env=pendulum", f"++callbacks.x={DECODED}"]]}, "builds values of text"),
    ({"jobs": [["env=pendulum", "env.name='${oc.env:HOME}'"]]}, "reads the environment"),
    ({"jobs": [["env=pendulum", "env.name='${oc.${env.id}:HOME}'"]]}, "reads the environment"),
    ({"hydra": ["hydra.launcher._target_=evil.f"]}, "not taken from a resumed folder"),
    ({"hydra": ["+hydra.callbacks.x._target_=evil.f"]}, "not taken from a resumed folder"),
    ({"hydra": ["hydra.searchpath=[pkg://evil]"]}, "not taken from a resumed folder"),
    ({"sources": {"config_dir": "."}}, "not taken from a resumed folder"),
    ({"sources": {"config_path": "/proc/self/cwd", "config_name": "config"}}, "not taken from a resumed folder"),
    ({"sources": {"config_name": "../../../../../../../../proc/self/cwd/config"}}, "not taken from a resumed folder"),
    ({"sources": {"config_name": 1}}, "is damaged"),
    ({"jobs": [[1]]}, "is damaged"),
    ({"jobs": None}, "is damaged"),
]


@pytest.mark.parametrize(("plan", "said"), PLANS)
def test_a_sweeps_folder_starts_nothing_of_a_strangers(plan: dict[str, Any], said: str, evil: Path) -> None:
    sources = {"config_dir": None, "config_path": None, "config_name": None}
    values: dict[str, Any] = {"jobs": [["env=pendulum"]], "hydra": [], "sources": sources}
    (evil / "sweep").mkdir()
    changed_plan = values | plan | {"sources": sources | plan.get("sources", {})}
    (evil / "sweep" / "sweep.json").write_text(json.dumps(changed_plan))
    with pytest.raises(ConfigError, match=said):
        train(["--multirun", "sweep.resume=sweep"])
    assert not (evil / MARKER).exists()
    assert "evil" not in sys.modules


def test_a_job_of_a_folders_plan_has_the_trust_that_was_typed_and_no_more(run_dir: Path, evil: Path) -> None:
    """Wherever it is read: what a plan and the checkpoint in it name alike is not the user's own."""
    overrides = [*TINY, "logger=none", "callbacks.x._target_=evil.f"]
    composed = load(overrides)
    forge(run_dir, "callbacks.x", {"_target_": "evil.f"})
    for folder in (run_dir, evil / "new"):
        with pytest.raises(ConfigError, match="is blocked"):
            open_run(composed, overrides, folder, "auto", trust=[])
        with pytest.raises(ConfigError, match="is blocked"):
            run_jobs(evil / "sweep", [overrides], trust=[])
        assert open_run(composed, overrides, folder, "auto", trust=["evil"]).config.callbacks
        shutil.rmtree(folder, ignore_errors=True)
    assert open_run(composed, overrides, evil / "new", "auto").config.callbacks, "the user's own command line"


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": ["env=pendulum", "callbacks.x._target_=evil.f"]},
        {"overrides": ["env=pendulum", "hydra.searchpath=[pkg://evil]"]},
        {"overrides": ["env=pendulum", "+trust=[evil]"]},
        {"search": {"space": {"trust": {"choices": [["evil"]]}}}},
        {"config_dir": "."},
        {"search": {"tasks": {"a": {"overrides": ["env=pendulum", "callbacks.x._target_=evil.f"]}}}},
        {"search": {"tasks": {"a": {"overrides": ["env=pendulum", "hydra.searchpath=[pkg://evil]"]}}}},
        {"search": {"tasks": {"../a": {"overrides": ["env=pendulum"]}}}},
        {"search": {"space": {"env": {"id": {"choices": ["Pendulum-v1", "evil:X-v0"]}}}}},
        {"search": {"space": {"env": {"name": {"choices": ["a", "${oc.env:HOME}"]}}}}},
        {"search": {"space": {"callbacks": {"choices": [{}, "${oc.decode:'{x: {_target_: evil.f}}'}"]}}}},
        {"overrides": ["env=pendulum", "logger=none", "env.name='${oc.env:HOME}'"]},
        {"overrides": 3},
    ],
)
def test_a_searchs_folder_starts_nothing_of_a_strangers(change: dict[str, Any], evil: Path) -> None:
    pytest.importorskip("optuna")
    settings = {"trials": 2, "seeds": 1, "startup": 1, "prune": False, "warmup": 0.1, "seed": 0}
    space = {"optim": {"lr": {"choices": [1e-3, 1e-4]}}}
    values = {"overrides": ["env=pendulum", "logger=none"], "config_dir": None, "search": settings | {"space": space}}
    change = {**change, "search": settings | {"space": space} | change.get("search", {})}
    (evil / "found").mkdir()
    (evil / "found" / "search.yaml").write_text(json.dumps(values | change))
    with pytest.raises(ConfigError):
        search(["resume=found"])
    assert not (evil / MARKER).exists()
