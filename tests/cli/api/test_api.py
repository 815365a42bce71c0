"""`mimcl.api`: its names, what importing them loads, and that functions and commands have the same options."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_overloads, get_type_hints

import pytest
from helpers.command_tree import COMMANDS

from mimcl import api
from mimcl.cli import options
from mimcl.cli.evaluate.evaluation import FeatureFlags

HEAVY = {"torch", "numpy", "pyarrow", "scipy", "timm", "transformers", "faiss", "nvidia", "cv2", "matplotlib"}
FUNCTIONS = {
    "shard": api.shard,
    "prototypes build": api.build_prototypes,
    "prototypes import": api.import_scores,
    "plan": api.plan,
    "train": api.train,
    "compare": api.compare,
    "report": api.report,
    "export": api.export,
    **dict(
        zip(
            (f"eval {name}" for name in ("knn", "linear", "attentive", "few-shot", "rank", "finetune")),
            get_overloads(api.evaluate),
            strict=True,
        )
    ),
}
OF_THE_COMMAND_ALONE = {"plan": {"rows", "out"}}  # how it prints and draws
OF_THE_FUNCTION_ALONE = {"eval": {"protocol"}}


def keywords(function) -> dict[str, inspect.Parameter]:
    """The parameters of a function, with those of its flags, which have the default None."""
    found = dict(inspect.signature(function).parameters)
    for name, parameter in list(found.items()):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            del found[name]
            flags = FeatureFlags if name == "features" else options.RunFlags
            found |= {
                key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
                for key in get_type_hints(flags)
            }
    return found


def test_type_checkers_see_the_names_that_programs_get():
    tree = ast.parse(Path(api.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.name: f"{node.module}" for alias in node.names}
        else:
            assert ast.unparse(node) == "Curriculum = CurriculumConfig"
            homes["Curriculum"] = f"{homes.pop('CurriculumConfig')}:CurriculumConfig"
    assert homes == api._HOMES


def test_every_name_is_there_and_another_is_refused():
    assert sorted(dir(api)) == api.__all__
    assert all(inspect.getdoc(getattr(api, name)) for name in api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'; it has CheckpointError, "):
        _ = api.trian


@pytest.mark.parametrize("name", [*(name for name in api.__all__ if name.islower()), "Loader"])
def test_every_argument_is_described_and_every_error_exists(name):
    described = api.Loader.__init__ if name == "Loader" else getattr(api, name)
    text = inspect.getdoc(described)
    arguments, errors = (re.search(rf"^{title}:\n(( .*\n?)+)", text, re.M)[1] for title in ("Args", "Raises"))
    own = {str(parameter).partition(":")[0] for parameter in inspect.signature(described).parameters.values()}
    assert set(re.findall(r"^    ([*\w]+): ", arguments, re.M)) == own - {"self"}
    assert set(re.findall(r"^    (\w+): ", errors, re.M)) <= {*api.__all__}


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ([], set()),
        (
            [
                "shard",
                "build_prototypes",
                "import_scores",
                "plan",
                "train",
                "compare",
                "report",
                "export",
                "Curriculum",
            ],
            set(),
        ),
        (["ConfigError", "DataError", "CheckpointError", "TrainingError", "DistributedError"], set()),
        (["ChildError", "StoppedError"], set()),
        (["evaluate", "PrototypeError"], {"numpy", "pyarrow"}),
    ],
)
def test_a_name_loads_no_library_before_it_is_needed(names, allowed):
    words = f"from mimcl.api import {', '.join(names)}" if names else "import mimcl.api"
    code = f"import sys\n{words}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= allowed


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_function_has_the_options_of_its_command(command):
    flags = {flag.name: flag for flag in COMMANDS[command].params}
    for name in OF_THE_COMMAND_ALONE.get(command, ()):
        del flags[name]
    found = keywords(FUNCTIONS[command])
    for name in OF_THE_FUNCTION_ALONE.get(command.split()[0], ()):
        del found[name]
    if command == "plan":  # which takes the values of other flags with --set
        found = {name: parameter for name, parameter in found.items() if name in flags}
    assert flags.keys() == found.keys()


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_function_has_the_defaults_of_its_command(command):
    found = keywords(FUNCTIONS[command])
    different = {
        name: (flag.default, found[name].default)
        for flag in COMMANDS[command].params
        if (name := flag.name) in found and flag.default not in (None, []) and found[name].default is not None
        if flag.default != found[name].default and found[name].default is not inspect.Parameter.empty
    }
    assert not different


def test_unknown_keywords_are_refused_as_python_does():
    for function in (api.train, api.plan):
        with pytest.raises(TypeError, match="epoch is not a flag; choose from data, decoder"):
            function("cpu_small", epoch=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'K'"):
        api.evaluate("nowhere", K=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: api.shard("images", shard_mb=0), "shard_mb is 0; it must be at least 1"),
        (lambda: api.shard("images", source_kind="rar"), "--source-kind is 'rar'; choose one of folder, tar"),
        (lambda: api.build_prototypes(k=0), "--k is 0; give a whole number above 0"),
        (lambda: api.build_prototypes(k=2.5), "k is 2.5; it must be a whole number"),
        (lambda: api.build_prototypes(k=9, sample=8), "--sample is 8, less than --k 9"),
        (lambda: api.build_prototypes(features="dino"), "--features is 'dino'; give auto, sift"),
        (lambda: api.build_prototypes(singletons="middle"), "singletons is 'middle'; choose one of far, near"),
        (lambda: api.build_prototypes(max_bad=2), "--max-bad is 2.0; it must be from 0 to 1"),
        (lambda: api.build_prototypes(name="a", out="b"), "--name is for a set beside the shards"),
        (lambda: api.plan("cpu_big"), "unknown recipe 'cpu_big'; choose auto or one of"),
        (lambda: api.plan("cpu_small", temperature=0.3, curriculum="proto"), "--temperature needs"),
        (lambda: api.train("cpu_small", epochs=-1), "trainer.epochs is -1.0; it must be above 0"),
        (lambda: api.train("cpu_small", settings={"optim.lr": 1}), "unknown key 'optim.lr'"),
        (lambda: api.train(resume=True), "--resume needs the run"),
        (
            lambda: api.evaluate("run", "svm"),
            "protocol is 'svm'; choose one of knn, linear, attentive, few-shot, rank, finetune",
        ),
        (lambda: api.evaluate("run", k=0), "--k is 0; it must be at least 1"),
        (lambda: api.evaluate("run", pool="max"), "--pool is 'max'; it must be mean or cls"),
        (lambda: api.evaluate("run", decoder="jax"), "--decoder is 'jax'; choose one of auto"),
        (lambda: api.evaluate("run", "linear", base_lr=1.0), "--base-lr needs --recipe mae"),
        (lambda: api.evaluate("run", "linear", recipe="mae", pool="cls"), "need --recipe fast"),
        (lambda: api.evaluate("run", "linear", batch_size=0), "--batch-size is 0; it must be at least 1"),
        (lambda: api.evaluate("run", "few-shot", shots=[]), "--shots and --seeds must be at least 1"),
        (lambda: api.evaluate("run", "finetune", settings={"mixupp": 0}), "unknown key 'mixupp'"),
        (lambda: api.compare("cpu_small", ["epochs", "proto"], seeds=0), "--seeds is 0; it must be at least 1"),
        (lambda: api.compare("cpu_small", "epochs", budget="money"), "--budget is 'money'; choose one of samples"),
        (lambda: api.compare("cpu_small", "epochs", evaluations=["svm"]), "--eval 'svm' is unknown"),
        (lambda: api.compare("cpu_small", "epochs", settings={"seed": 1}), "--set seed is not possible here"),
        (lambda: api.export("run", "out", target="onnx"), "--format is 'onnx'; it must be one of timm"),
    ],
)
def test_wrong_arguments_are_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(api.ConfigError) as error:
        call()
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert not list(tmp_path.iterdir())


def test_missing_things_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call, kind, message in (
        (lambda: api.shard("nowhere", "out"), api.DataError, "nowhere not found"),
        (lambda: api.build_prototypes("nowhere"), api.DataError, "nowhere is not a packed data set"),
        (lambda: api.train("cpu_small", data="nowhere"), api.DataError, "nowhere is not a packed data set"),
        (lambda: api.evaluate("nowhere"), api.CheckpointError, "nowhere does not exist"),
        (lambda: api.report("nowhere"), api.DataError, "nowhere is not a run"),
        (lambda: api.report([]), api.DataError, "no run to report on"),
        (lambda: api.export("nowhere", "out"), api.CheckpointError, "nowhere does not exist"),
    ):
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
