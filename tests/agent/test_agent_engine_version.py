"""Which engine an interpreter has."""

import sys

from pdctl.agent.engine_version import engine_version


def test_the_first_package_that_is_installed_is_told_by_its_name():
    found = engine_version(sys.executable, ["no-such-engine", "pytest"])
    assert found["engine_package"] == "pytest"
    assert str(found["engine_version"])[0].isdigit()


def test_none_is_installed():
    packages = ["no-such-engine", "nor-this-one"]
    assert engine_version(sys.executable, packages) == {
        "engine_problem": f"{sys.executable} has no no-such-engine or nor-this-one"
    }


def test_an_interpreter_that_is_none():
    problem = engine_version("/no/such/python", ["x"])["engine_problem"]
    assert problem == "/no/such/python cannot be run: No such file or directory"
