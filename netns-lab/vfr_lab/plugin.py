"""pytest's plugin: fixtures with which anybody tests that guests are apart. docs/ci.md shows how.

pytest imports this module in every project of an environment, so it imports nothing that it can do without.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from vfr_lab.isolation import Isolation
    from vfr_lab.lab import Lab

ALWAYS = ("ip", "ping")
OF_A_LAB = ("ss", "nsenter", "unshare", "ssh-keygen", "sshd", "conntrack")


class OfNamespaces(Protocol):
    """What the fixture `isolation_netns` is."""

    def __call__(self, *names: str, witness: str, addresses: Mapping[str, str] | None = None) -> Isolation: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vfr_lab", "isolation of guests, in a lab of network namespaces")
    group.addoption("--lab-backend", metavar="NAME", help="what wires the lab's guests; `vfr-lab backends` lists them")
    group.addoption("--lab-captures", metavar="DIR", help="where captures of failures go [a temporary directory]")
    group.addoption("--lab-skip-ok", action="store_true", help="skip what lacks root or a program, which else fails")
    parser.addini("lab_backend", "what wires the lab's guests", default="vfr")
    parser.addini("lab_captures", "where captures of failures go, from the ini file's directory", default="")
    parser.addini(
        "lab_rules", "the rule file that the lab's guests are under, from the ini file's directory", default=""
    )
    parser.addini("lab_skip_ok", "skip what lacks root or a program", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab_rules(file): the rule file that the lab's guests are under in this test")


def _option(config: pytest.Config, name: str) -> str:
    """From the command line, or else from the ini file."""
    return str(config.getoption(f"--{name.replace('_', '-')}") or config.getini(name))


def _rule_file(name: str, directory: Path) -> Path:
    file = (directory / name).resolve()
    if not file.is_file():
        pytest.fail(f"there is no rule file {file}", pytrace=False)
    return file


def _ini_directory(config: pytest.Config) -> Path:
    return config.inipath.parent if config.inipath else config.rootpath


def _check_machine(config: pytest.Config, programs: tuple[str, ...]) -> None:
    """Fails, or skips if that was asked for, where this cannot run."""
    lacking = [p for p in programs if shutil.which(p) is None]
    lacking += [] if find_spec("scapy") else ["scapy (pip install 'vfr[lab]')"]
    lacking = ["root", *lacking] if os.geteuid() else lacking
    if not lacking:
        return
    reason = f"a lab needs {', '.join(lacking)}"
    if config.getoption("--lab-skip-ok") or config.getini("lab_skip_ok"):
        pytest.skip(reason)
    pytest.fail(f"{reason}; --lab-skip-ok skips the test instead", pytrace=False)


@pytest.fixture(scope="session")
def _isolation_captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = request.config
    if chosen := config.getoption("--lab-captures"):
        return config.invocation_params.dir / str(chosen)
    chosen = config.getini("lab_captures")
    return _ini_directory(config) / chosen if chosen else tmp_path_factory.mktemp("captures")


@pytest.fixture(scope="session")
def _isolation_lab(request: pytest.FixtureRequest, _isolation_captures: Path) -> Iterator[tuple[Lab, Isolation]]:
    """One lab for the session, under the ini file's rules; its name is no other run's."""
    from vfr_lab import backends
    from vfr_lab.lab import Lab, LabError
    from vfr_lab.scenario import JUDGE

    config = request.config
    try:
        backend = backends.backend(_option(config, "lab_backend"))
    except LookupError as error:
        raise LabError(error.args[0]) from None
    _check_machine(config, (*ALWAYS, *OF_A_LAB, *backend.programs))
    from vfr_lab.ground import LabGround
    from vfr_lab.isolation import Isolation

    lab = Lab(JUDGE, f"t{os.getpid()}{secrets.token_hex(2)}-", backend)
    rules = config.getini("lab_rules")
    under = backend.under(lab, _rule_file(rules, _ini_directory(config))) if rules else nullcontext()
    try:
        lab.up()
        with under, Isolation(LabGround(lab), _isolation_captures) as isolation:
            yield lab, isolation
    finally:
        lab.down()


@pytest.fixture
def isolation_lab(request: pytest.FixtureRequest, _isolation_lab: tuple[Lab, Isolation]) -> Iterator[Isolation]:
    """A lab with the guests web, db and ci, the host dom0, lan1 and lan2, and inet, under the rules asked for."""
    lab, isolation = _isolation_lab
    mark = request.node.get_closest_marker("lab_rules")
    with ExitStack() as stack:
        if mark:
            stack.enter_context(lab.backend.under(lab, _rule_file(mark.args[0], request.path.parent)))
        yield isolation


@pytest.fixture
def isolation_netns(request: pytest.FixtureRequest, _isolation_captures: Path) -> Iterator[OfNamespaces]:
    """Of network namespaces that are there already: `isolation_netns("a", "b", witness="lan")`."""
    _check_machine(request.config, ALWAYS)
    from vfr_lab.ground import NetnsGround
    from vfr_lab.isolation import Isolation

    with ExitStack() as stack:

        def of(*names: str, witness: str, addresses: Mapping[str, str] | None = None) -> Isolation:
            return stack.enter_context(Isolation(NetnsGround(names, witness, addresses or {}), _isolation_captures))

        yield of
