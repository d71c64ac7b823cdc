import pytest

from autoregressive_diffusion_pytorch.utils.validation import (
    as_height_and_width,
    check_above_zero,
    check_choice,
    check_positive_int,
)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_what_is_no_positive_whole_number(value):
    with pytest.raises(
        ValueError, match=f"size must be a whole number of at least 1, got {value!r}"
    ):
        check_positive_int(other=1, size=value)


@pytest.mark.parametrize("value", [0.0, -1, float("nan")])
def test_what_is_not_above_zero(value):
    with pytest.raises(ValueError, match=f"rate must be above 0, got {value!r}"):
        check_above_zero(other=0.1, rate=value)


def test_choices_are_listed():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(ValueError, match="kind must be one of 'a', 'b', got 'c'"):
        check_choice("kind", "c", ("a", "b"))


def test_height_and_width():
    assert as_height_and_width("size", 3) == (3, 3)
    assert as_height_and_width("size", (3, 4)) == (3, 4)
    assert as_height_and_width("size", [3, 4]) == (3, 4)
    for value in (0, (3,), (3, 0), (1, 2, 3), 3.0, True):
        with pytest.raises(
            ValueError,
            match=r"size must be a whole number of at least 1, or \(height, width\), got",
        ):
            as_height_and_width("size", value)
