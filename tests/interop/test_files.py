import argparse
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.interop import WeightsError, read_state_dict

TENSORS = {
    "module.head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array([3]),
}


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(TENSORS, tmp_path / "weights.safetensors")
    read = read_state_dict(tmp_path / "weights.safetensors")
    assert set(read) == {"head.weight", "steps"}
    np.testing.assert_array_equal(read["head.weight"], TENSORS["module.head.weight"])


def test_half_precisions_are_widened(tmp_path):
    flax = pytest.importorskip("safetensors.flax")
    halves = {"a": jnp.full((2,), 0.5, jnp.bfloat16), "b": jnp.full((2,), 0.5, jnp.float16)}
    flax.save_file(halves, tmp_path / "halves.safetensors")
    for value in read_state_dict(str(tmp_path / "halves.safetensors")).values():
        assert value.dtype == np.float32 and (value == 0.5).all()


def test_a_broken_safetensors_file(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="no readable safetensors file"):
        read_state_dict(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_torch(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    tensors = {n: torch.from_numpy(t) for n, t in TENSORS.items()}
    tensors["half"] = torch.full((2,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    content = {wrapper: tensors, "args": argparse.Namespace(lr=1.0), "epoch": 3}
    torch.save(content if wrapper else tensors, tmp_path / "weights.pth")
    read = read_state_dict(tmp_path / "weights.pth")
    assert set(read) == {"head.weight", "steps", "half"}
    assert read["half"].dtype == np.float32
    np.testing.assert_array_equal(read["head.weight"], TENSORS["module.head.weight"])


class Opaque:
    """Something that only running code could restore."""


def test_torch_files_that_are_no_weights(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "text.pt").write_text("nothing of the kind")
    torch.save({"model": Opaque()}, tmp_path / "code.pth")
    for name in ("text.pt", "code.pth"):
        with pytest.raises(WeightsError, match="no readable PyTorch file"):
            read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_state_dict(tmp_path / "list.pth")


@pytest.mark.parametrize("name, package", [("w.pth", "torch"), ("w.safetensors", "safetensors")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)  # what makes an import fail
    with pytest.raises(WeightsError, match=rf'pip install "nasjax\[{package}\]"'):
        read_state_dict(tmp_path / name)


def test_torch_checkpoints_are_unwrapped_and_never_run(tmp_path, monkeypatch):
    """The same with a stand-in for PyTorch, which few developers of nasjax have."""

    class Tensor(np.ndarray):
        def detach(self):
            return self

        def is_floating_point(self):
            return self.dtype.kind == "f"

        def float(self):
            return self.astype(np.float32)

        def numpy(self):
            return np.asarray(self)

    def load(path, map_location, weights_only):
        assert map_location == "cpu" and weights_only is True
        return {"model": {n: t.view(Tensor) for n, t in TENSORS.items()}, "epoch": 3}

    safe = types.SimpleNamespace(safe_globals=lambda allowed: _Nothing())
    fake = types.SimpleNamespace(load=load, Tensor=Tensor, serialization=safe)
    monkeypatch.setitem(sys.modules, "torch", fake)
    (tmp_path / "w.pth").write_bytes(b"")
    read = read_state_dict(tmp_path / "w.pth")
    assert set(read) == {"head.weight", "steps"}


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.parametrize(
    "name, message", [("weights.npz", "should end in"), ("absent.pth", "there is no file")]
)
def test_files_of_another_kind(tmp_path, name, message):
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / name)
