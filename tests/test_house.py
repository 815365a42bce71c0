"""Rules of the code base: who imports whom, no pickles, fast start, names and sizes of files."""

import ast
import builtins
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
WINGS = ("pipeline", "curriculum", "model")
MODULES = sorted(path for wing in (*WINGS, "cli") for path in (ROOT / wing).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_modules_are_found():
    assert len(MODULES) > 20


@pytest.mark.parametrize("wing", WINGS)
def test_wings_never_import_one_another(wing):
    others = tuple(f"mimcl.{other}" for other in (*WINGS, "cli") if other != wing)
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in MODULES
        if path.is_relative_to(ROOT / wing)
        for name in imported(path)
        if name.startswith(others)
    ]
    assert not found


def test_only_its_file_imports_dali():
    users = [path for path in MODULES if any(name.startswith("nvidia.dali") for name in imported(path))]
    assert users == [ROOT / "pipeline" / "dali.py"]


def test_only_its_file_opens_images():
    calls = {
        path: {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        for path in MODULES
    }
    users = [path for path, names in calls.items() if "Image.open" in names]
    assert users == [ROOT / "pipeline" / "pillow.py"]  # which raises Pillow's limits first


def test_the_package_is_imported_by_its_own_name():
    assert not [(path, name) for path in MODULES for name in imported(path) if name.split(".")[0] in (*WINGS, "cli")]


def test_no_function_that_can_execute_data_is_used():
    source = "\n".join(path.read_text() for path in MODULES)
    for forbidden in ("allow_pickle=True", "weights_only=False", "yaml.load(", "pickle.load", "eval(", "exec("):
        allowed = source.replace("model.eval(", "").replace(".eval()", "") if forbidden == "eval(" else source
        assert forbidden not in allowed


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["shard", "--help"],
        ["verify", "--help"],
        ["inspect", "--help"],
        ["plan", "--help"],
        ["train", "--help"],
        ["export", "--help"],
        ["embed", "--help"],
        ["predict", "--help"],
        ["doctor", "--help"],
        ["masks", "--help"],
        ["report", "--help"],
        ["prototypes", "build", "--help"],
        ["prototypes", "import", "--help"],
        ["repack", "--help"],
        ["eval", "knn", "--help"],
        ["eval", "finetune", "--help"],
        ["eval", "linear", "--help"],
        ["eval", "few-shot", "--help"],
        ["compare", "--help"],
    ],
)
def test_help_loads_no_heavy_library(command):
    code = (
        "import sys; sys.argv[1:] = " + repr(command) + "\n"
        "from mimcl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'timm', 'transformers', 'faiss', 'nvidia', 'pyarrow', 'cv2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("HEAVY []")


def test_the_configuration_imports_no_heavy_library():
    code = (
        "import sys\n"
        "from mimcl.cli.config import Config\n"
        "from mimcl.cli import options, recipes\n"
        "assert all(isinstance(make(), Config) for make in recipes.RECIPES.values())\n"
        "print('LOADED', sorted({'torch', 'timm', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "LOADED []\n"


def test_packing_does_not_import_torch(tmp_path):
    (tmp_path / "src" / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "src" / "train" / "a.png")
    code = (
        "import sys; sys.argv[1:] = ['shard', 'src']\n"
        "from mimcl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('LOADED', sorted({'torch', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("LOADED ['pyarrow']")


def test_files_other_than_python_are_packaged_too():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = [path for wing in (*WINGS, "cli") for path in (ROOT / wing).rglob("*.*") if path.is_file()]
    others = [path for path in found if path.suffix not in (".py", ".pyc")]
    packages = {"mimcl.cli.report": ROOT / "cli" / "report"}
    packaged = {
        path for name, folder in packages.items() for pattern in patterns[name] for path in folder.glob(pattern)
    }
    packaged |= {path for pattern in patterns["*"] for path in others if path.match(pattern)}
    assert {path.name for path in packaged} >= {"py.typed", "page.js", "base.html.j2", "uPlot.LICENSE"}
    assert not set(others) - packaged


def test_the_package_list_matches_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({module_name(path).rpartition(".")[0] for path in MODULES})


@pytest.mark.parametrize("wing", [*WINGS, "cli"])
def test_a_basename_occurs_once_in_a_wing(wing):
    names = Counter(path.name for path in MODULES if path.is_relative_to(ROOT / wing))
    assert not [name for name, count in names.items() if count > 1]


def test_no_modules_import_one_another_in_a_circle():
    names = {module_name(path): path for path in MODULES}
    arrows = {name: modules_of(imported(path), names) - {name} for name, path in names.items()}
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, "these modules are in a circle, or import one that is"


def test_only_commands_import_commands():
    """Commands may import commands: demo and compare run other commands' functions. Programs get them by mimcl.api."""
    names = {module_name(path): path for path in MODULES}
    commands = {name for name, path in names.items() if is_command(path)}
    assert len(commands) > 10
    found = [
        (name, target)
        for name, path in names.items()
        if name not in commands and name != "mimcl.cli.app" and not name.startswith("mimcl.api.")
        for target in modules_of(imported(path), names) & commands
    ]
    assert not found


def test_no_parameter_shadows_a_builtin():
    found = [
        (str(path.relative_to(ROOT)), node.lineno, parameter.arg)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for parameter in ast.walk(node.args)
        if isinstance(parameter, ast.arg) and hasattr(builtins, parameter.arg)
    ]
    assert not found


def test_text_files_have_an_encoding():
    """By default Python takes the locale's."""
    found = [
        (str(path.relative_to(ROOT)), node.lineno)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and depends_on_locale(node)
    ]
    assert not found


@pytest.mark.parametrize("wing", [*WINGS, "cli"])
def test_files_are_small(wing):
    """One idea per file: about 250 lines, and never more than 300."""
    lines = {path.name: path.read_text().count("\n") for path in MODULES if path.is_relative_to(ROOT / wing)}
    assert not {name: count for name, count in lines.items() if count > 300}


def module_name(path: Path) -> str:
    """Return the name under which a file is imported; cli/api is mapped as mimcl.api."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mimcl", *(parts[1:] if parts[:2] == ("cli", "api") else parts)))


def modules_of(imports: set[str], names: dict[str, Path]) -> set[str]:
    """Return the modules that the imported names are, or are members of."""
    return {name for name in imports if name in names} | {
        parent for name in imports if name not in names and (parent := name.rpartition(".")[0]) in names
    }


def is_command(path: Path) -> bool:
    """Return whether the module defines a command: a function that `mimcl.cli.app` or a Typer group registers."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return path.is_relative_to(ROOT / "cli") and any(
        function.name.endswith("_command") or any("command" in ast.unparse(d) for d in function.decorator_list)
        for function in functions
    )


def depends_on_locale(call: ast.Call) -> bool:
    """Return whether the call reads or writes text in the locale's encoding."""
    name, given = ast.unparse(call.func).rpartition(".")[2], len(call.args)
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name == "open" and isinstance(call.func, ast.Name):
        return given < 2 or "b" not in ast.unparse(call.args[1])
    return (name == "read_text" and given < 1) or (name == "write_text" and given < 2)
