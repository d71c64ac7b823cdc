"""What tests of commands need: the smallest training, and what came of a call (a fixture of
conftest.py)."""

TINY = [
    *("--dim", "16", "--depth", "1", "--heads", "2", "--mlp-width", "16", "--mlp-depth", "1"),
    *("--noise-draws", "1", "--batch-size", "4", "--steps", "2"),
]


def succeeded(result):
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def failed(result):
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output
