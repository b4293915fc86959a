"""How long OpenMP's threads wait awake, which is to be said before torch is imported."""

import os
import subprocess
import sys

import pytest

_ASK = (
    "import atexit, os, sys; from hopformer.cli import main; sys.argv = ['hopformer', '--version']; "
    "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)); main()"
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_wait_awake_for_less_than_a_step_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-P", "-c", _ASK], env={**env, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{expected} False"
