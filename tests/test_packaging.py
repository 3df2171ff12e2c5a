import tomllib

from commands import REPOSITORY


def test_every_package_of_the_library_is_installed():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(REPOSITORY / "src").parts)
        for path in (REPOSITORY / "src" / "worstcase").rglob("__init__.py")
    }
    assert set(listed) == found


def test_ci_runs_the_test_command_of_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    (command,) = [line.strip() for line in readme.splitlines() if line.strip().endswith("-m pytest")]
    assert command.startswith("python3 -m venv .venv && ")
    assert 'grep -- "-m pytest$" README.md' in (REPOSITORY / ".ci" / "run").read_text()
