import subprocess
import sys

import pytest

from evomerge.errors import ConfigurationError
from evomerge.zoo import ZOOS, Zoo, zoo_path


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Replaces the training by a note of what was asked for."""
    calls = []

    def train(folder, seed, progress):
        calls.append((folder, seed, progress))
        return tmp_path

    monkeypatch.setitem(ZOOS, "tiny", Zoo(ZOOS["tiny"].models, train))
    return calls


@pytest.mark.parametrize(
    ("reference", "seed", "model"),
    [("zoo:tiny/sort", 0, "sort"), ("zoo:tiny@3/base", 3, "base"), ("zoo:tiny@0/rot", 0, "rot")],
)
def test_reference(asked, tmp_path, reference, seed, model):
    assert zoo_path(reference, progress=print) == tmp_path / model
    assert asked == [(None, seed, print)]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("zoo:tiny/sotr", "did you mean 'sort'? valid: back, base, rot, sort"),
        ("zoo:tiny", "which model"),
        ("zoo:tinny/sort", "did you mean 'tiny'"),
        ("zoo:tiny@x/sort", "did you mean 'zoo:tiny/sort'"),
        ("zoo:tiny/", "which model"),
        ("zoo:tiny@-1/sort", "zoo:FAMILY@SEED/MODEL"),
        ("tiny/sort", "did you mean 'zoo:tiny/sort'"),
        ("zoo:tiny/../tiny/sort", "has no model"),
    ],
)
def test_wrong_reference_names_the_nearest_before_any_training(asked, reference, expected):
    with pytest.raises(ConfigurationError) as caught:
        zoo_path(reference)
    assert expected in str(caught.value)
    assert reference in str(caught.value)
    assert asked == []


def test_importing_the_table_imports_no_torch():
    code = (
        "import sys; from evomerge.zoo import ZOOS;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
