"""`tarpon.__all__` is what can be imported, sorted, and nothing else leaks."""

import subprocess
import sys
import types

import tarpon
import tarpon.errors


def test_all_is_sorted_and_complete() -> None:
    assert tarpon.__all__ == sorted(tarpon.__all__)
    public = {
        name
        for name, value in vars(tarpon).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(tarpon.__all__)


def test_every_error_is_public_and_one_of_the_family() -> None:
    errors = {
        name: value
        for name, value in vars(tarpon.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert set(errors) <= set(tarpon.__all__)
    assert all(issubclass(error, tarpon.TarponError) for error in errors.values())


def test_the_version_is_one() -> None:
    import importlib.metadata

    assert importlib.metadata.version("tarpon") == tarpon.__version__


def test_torch_and_dali_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, tarpon; before = {'torch', 'nvidia.dali'} & set(sys.modules); "
        "print(sorted(before), tarpon.torch.TorchLoader.__name__, hasattr(tarpon, 'jax'))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["[]", "TorchLoader", "False"]
