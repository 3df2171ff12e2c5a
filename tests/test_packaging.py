import tomllib

from commands import REPOSITORY


def test_pyproject_lists_every_package():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(REPOSITORY / "src").parts)
        for path in (REPOSITORY / "src" / "worstcase").rglob("__init__.py")
    }
    assert set(listed) == found | {"worstcase.conf", "worstcase.networks"}


def test_the_wheel_has_every_file_of_the_zoo():
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    zoo = REPOSITORY / tools["package-dir"]["worstcase.networks"]
    (pattern,) = tools["package-data"]["worstcase.networks"]
    assert set(zoo.glob(pattern)) == set(zoo.rglob("*"))
