"""The features that lies are told to."""

from pathlib import Path

from certificate.promises import tags_of, templates
from tests.sabotage.matrix import Told

FEATURES = Path(__file__).parent.parent.parent / "features"


def every_scenario() -> tuple[Told, ...]:
    """Every scenario of the features, by file and in the file's order."""
    return tuple(Told(template.name, tags_of(template)) for template in templates(FEATURES))
