"""The error tree: codes and exit statuses that others hold us to."""

from __future__ import annotations

import pytest

from mayfly import errors
from mayfly.model import OUTCOME_EXIT, Outcome


def subclasses(cls: type[errors.MayflyError]) -> list[type[errors.MayflyError]]:
    return [cls, *(c for child in cls.__subclasses__() for c in subclasses(child))]


def test_each_code_has_one_exit_status_and_it_is_the_outcomes() -> None:
    for cls in subclasses(errors.MayflyError):
        assert OUTCOME_EXIT[Outcome(cls.code)] == cls.exit_status


@pytest.mark.parametrize("cls", subclasses(errors.MayflyError))
def test_a_peers_code_comes_back_as_the_same_kind(cls: type[errors.MayflyError]) -> None:
    if cls is errors.ConfigError:
        return
    there = cls("the disk is full", hint="empty it")
    back = errors.from_code(
        there.code, there.message, hint=there.hint, http_status=there.http_status
    )
    assert (back.code, back.exit_status) == (there.code, there.exit_status)
    assert back.http_status == there.http_status
    assert str(back) == "the disk is full - empty it"


def test_an_unknown_code_is_still_an_error() -> None:
    assert errors.from_code("from the future", "what").exit_status == 70


def test_only_infrastructure_is_worth_retrying() -> None:
    retryable = {cls.code for cls in subclasses(errors.MayflyError) if cls.retryable}
    assert retryable == {"infrastructure"}


def test_the_tree_in_the_docstring_names_every_class() -> None:
    for cls in subclasses(errors.MayflyError):
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in (errors.__doc__ or "")
