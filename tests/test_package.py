"""What is installed: the front door, the version, the wheel's contents, and the pinned versions."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vqvdm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in parts}


@pytest.mark.parametrize("module", ["vqvdm", "vqvdm.recipe", "vqvdm.errors", "vqvdm.cli", "vqvdm.verbs.show"])
def test_light_imports(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'numpy', 'av'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [name for name in vqvdm.__all__ if name != "__version__"])
def test_front_door(name):
    value = vars(importlib.import_module(vqvdm._HOMES[name]))[name]
    assert vqvdm.__getattr__(name) is value
    assert name in dir(vqvdm)


def test_what_diffusers_asks_of_a_parts_package():
    import diffusers

    assert vqvdm.ModelMixin is diffusers.ModelMixin
    assert vqvdm.SchedulerMixin is diffusers.SchedulerMixin


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'VideoTokeniser'"):
        _ = vqvdm.VideoTokeniser


def test_version_has_one_place():
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", vqvdm.__version__)
    assert metadata.version("vqvdm") == vqvdm.__version__
    assert f"\nversion: {vqvdm.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {vqvdm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_holds_recipes_types_and_licence(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"vqvdm-{vqvdm.__version__}-py3-none-any")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    for path in [*source.rglob("*.py"), *source.rglob("*.yaml"), source / "vqvdm" / "py.typed"]:
        assert path.relative_to(source).as_posix() in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs"))]


def test_constraints_pin_exactly_and_for_every_platform():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
    assert pins()["torch"] == "2.13.0"


def test_constraints_are_complete():
    """Follow the installed packages' own requirements from ours: each is pinned, inside its range, and is what runs."""
    fixed = pins()
    dev = PROJECT["optional-dependencies"]["dev"]
    queue = [Requirement(text) for text in [*PROJECT["dependencies"], *dev, *_build_requirements()]]
    seen = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in [*requirement.extras, ""]
        ):
            continue
        assert name in fixed, f"{requirement} is not in constraints.txt"
        assert requirement.specifier.contains(fixed[name]), f"{requirement} against {fixed[name]}"
        if name not in seen:
            seen.add(name)
            queue += [Requirement(text) for text in metadata.requires(name) or [] if "extra ==" not in text]


def _build_requirements() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]


def test_nothing_breaks_diffusers():
    """A torchvision or torchcodec that does not match torch breaks `import diffusers` itself."""
    ours = " ".join([*PROJECT["dependencies"], *pins()])
    assert not re.search(r"torchvision|torchcodec|decord|opencv|lightning(?!-utilities)", ours)


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert len(text) > 11_000
    assert PROJECT["license"] == "Apache-2.0"
