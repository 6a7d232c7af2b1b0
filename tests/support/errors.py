"""Mistakes of users: one line that says what is wrong."""

import pytest

from progemu_jax.errors import UserError


def fails(words, ask, *arguments, **options):
    """`ask` raises a UserError of one line in which `words`, a pattern, is found."""
    with pytest.raises(UserError, match=words) as caught:
        ask(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
