"""The examples of public docstrings run, and public docstrings have the parts that they promise."""

import doctest
import inspect
from importlib import import_module

import pytest

import lidar_cli
from lidar_cli import integrations

# Each module, and the names in it whose docstrings users read.
PUBLIC = {
    "lidar_cli.api.commands": ["compare", "inspect", "rank", "score"],
    "lidar_cli.core.functional": ["alpha_req", "lidar", "rankme"],
    "lidar_cli.core.moments": ["Moments"],
    "lidar_cli.features.writer": ["FeatureWriter", "write_features"],
    "lidar_cli.integrations.torchmetrics": [
        "AlphaReQ",
        "EmbeddingMetric",
        "LiDAR",
        "Pillai",
        "RankMe",
    ],
    "lidar_cli.integrations.lightning": ["LogMetrics"],
}
NEEDS = {"lidar_cli.integrations.lightning": "lightning"}


@pytest.mark.filterwarnings("ignore")  # of lightning, on import
@pytest.mark.parametrize("module", PUBLIC)
def test_the_examples_run(module):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    module = import_module(module)
    results = doctest.testmod(module)
    assert results.failed == 0
    examples = {
        test.name.split(".")[-1] for test in doctest.DocTestFinder().find(module) if test.examples
    }
    assert examples >= set(PUBLIC[module.__name__])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names]
)
def test_a_public_docstring_has_every_part(module, name):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    member = getattr(import_module(module), name)
    text = inspect.getdoc(member)
    first, *rest = text.split("\n\n")
    assert "\n" not in first
    assert first.endswith(".")
    init = member.__init__ if inspect.isclass(member) else member
    arguments = [name for name in inspect.signature(init).parameters if name != "self"]
    heads = {part.partition("\n")[0]: part for part in rest}
    for head in ("Args:", "Example:", "References:", *(["Returns:"] * inspect.isfunction(member))):
        assert head in heads, head
    for argument in arguments:
        assert f"\n    {argument}: " in heads["Args:"], argument


@pytest.mark.parametrize("name", lidar_cli.integrations.__all__)
def test_every_integration_resolves_lazily(name):
    if name == "LogMetrics":
        pytest.importorskip("lightning")
    assert getattr(integrations, name).__name__ == name
    assert name in dir(integrations)


def test_an_unknown_integration_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = integrations.Nothing
