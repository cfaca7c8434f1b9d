"""A pytest plugin: runs the scenarios that were named, and tells what each showed, in place of a certificate."""

import json
from pathlib import Path

import pytest
from pytest_bdd.scenario import scenario_wrapper_template_registry

from certificate.plugin import PLUGIN, Certificate


class Ear(Certificate):
    """Hears what a certificate would, and writes no certificate: a target that is lied to is not certified."""

    def __init__(self, config: pytest.Config, folder: Path, heard: Path) -> None:
        super().__init__(config, folder)
        self._heard_at = heard

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the finding of every scenario that was selected."""
        self._end_of_the_awaited()
        found = {name: finding for _, _, found in self.judged() for name, finding in found.items()}
        selected = {_name(item) for item in session.items}
        told = {name: (finding.verdict, finding.reason) for name, finding in found.items() if name in selected}
        self._heard_at.write_text(json.dumps(told))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which scenarios, and where to tell of them."""
    parser.addoption("--scenarios", type=Path, required=True, help="a JSON list of names of scenarios")
    parser.addoption("--heard", type=Path, required=True, help="where their findings go, as JSON")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take the certificate's place."""
    certificate = config.pluginmanager.unregister(name=PLUGIN)
    assert isinstance(certificate, Certificate)
    features = config.rootpath / str(config.getini("bdd_features_base_dir"))
    config.pluginmanager.register(Ear(config, features, config.option.heard), PLUGIN)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what was named."""
    wanted = set(json.loads(config.option.scenarios.read_text()))
    items[:] = [item for item in items if _name(item) in wanted]


def _name(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    template = None if function is None else scenario_wrapper_template_registry.get(function)
    return template.name if template else ""
