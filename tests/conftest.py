"""What the tests of this code share."""

pytest_plugins = ["pytester"]
