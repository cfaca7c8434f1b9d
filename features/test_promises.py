"""Binds every scenario in this folder to the steps in `steps/`."""

from pytest_bdd import scenarios

scenarios(".")
