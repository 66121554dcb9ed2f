"""Weights of other programs: torch's files and EDM's pickles give tensors, and run nothing."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import resource
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sde_diffusion import ForeignWeights, convert_weights, load, read_weights
from sde_diffusion.cli.main import main
from sde_diffusion.foreign.pickle_reader import read_pickle


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    inner = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4, bias=False).bfloat16()})
    net = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), inner)
    net.append(nn.BatchNorm1d(4))  # with a buffer of integers
    net[1].a.weight = net[1].b.weight if seed == 7 else net[1].a.weight  # shared
    net.register_buffer("passing", torch.ones(2), persistent=False)
    return net


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("new", [True, False], ids=["archive", "old format"])
@pytest.mark.parametrize("seed", [0, 7])
def test_files_of_torch_give_the_tensors_that_were_saved(tmp_path, new, seed) -> None:
    net = network(seed)
    path = tmp_path / "net.pt"
    expected = net.state_dict()
    parts = {
        "model": expected,
        "ema": {"decay": 0.9, "shadow_params": list(expected.values())},
        "optimizer": {"step": 3},
    }
    torch.save(parts, path, _use_new_zipfile_serialization=new)
    assert same(read_weights(path, "model").tensors, expected)
    rows = read_weights(path, "ema.shadow_params").tensors
    assert same(rows, {str(i): tensor for i, tensor in enumerate(expected.values())})
    torch.save(expected, path, _use_new_zipfile_serialization=new)
    assert same(read_weights(path).tensors, expected)
    torch.save(net, path, _use_new_zipfile_serialization=new)  # the whole module
    assert same(read_weights(path).tensors, expected)


def test_safetensors_give_the_tensors_that_were_saved(tmp_path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert same(read_weights(tmp_path / "a.safetensors").tensors, {"a": torch.arange(3.0)})


# --- EDM's pickles ---

SOURCE = "raise RuntimeError('the source of a pickle was run')"


@pytest.fixture
def persistent() -> Iterator[Callable[[type[nn.Module]], type[nn.Module]]]:
    """A stand-in of EDM's `torch_utils.persistence`: classes that pickle with their source."""
    parents = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    persistence = types.ModuleType("torch_utils.persistence")
    util = types.ModuleType("dnnlib.util")

    def rebuild(meta: Any) -> Any:
        raise AssertionError(meta)

    rebuild.__module__ = "torch_utils.persistence"
    rebuild.__name__ = rebuild.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    util.EasyDict = easy  # type: ignore[attr-defined]
    modules = {**parents, "torch_utils.persistence": persistence, "dnnlib.util": util}

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        class Decorated(cls):  # type: ignore[misc,valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._init_args = args
                self._init_kwargs = easy(kwargs)

            def __reduce__(self) -> Any:
                state = super().__reduce__()[2]
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": SOURCE,
                    "class_name": cls.__name__,
                    "state": state,
                }
                return rebuild, (easy(meta),), None

        return Decorated

    sys.modules.update(modules)
    yield decorate
    for name in modules:
        del sys.modules[name]


class Denoiser(nn.Module):
    """A network as EDM's: parts with persistent classes inside plain containers."""

    def __init__(self, width: int, sigma_data: float = 0.5, part: type[nn.Module] = nn.Linear):
        super().__init__()
        self.sigma_data = sigma_data
        self.enc = nn.ModuleDict({"8x8": part(2, width), "act": nn.SiLU()})
        self.out = nn.ModuleList([nn.Linear(width, 2)])
        self.register_buffer("freqs", torch.arange(4.0), persistent=False)
        self.register_buffer("resample", torch.tensor([1.0, 3.0, 3.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out[0](self.enc["act"](self.enc["8x8"](x))) * self.resample[1]


class Part(nn.Linear):
    pass


def edm_pickle(persistent, protocol: int) -> tuple[bytes, nn.Module]:
    torch.manual_seed(1)
    net = persistent(Denoiser)(5, sigma_data=0.25, part=persistent(Part))
    net.eval().requires_grad_(False)
    del net._init_kwargs["part"]
    data = {"ema": net, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x"}}
    return pickle.dumps(data, protocol=protocol), net


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_edm_pickle_gives_the_outputs_of_its_network(tmp_path, persistent, protocol) -> None:
    data, net = edm_pickle(persistent, protocol)
    (tmp_path / "net.pkl").write_bytes(data)
    found = read_weights(tmp_path / "net.pkl")
    assert found.class_name == "Denoiser"
    assert found.arguments == {"sigma_data": 0.25}
    ours = Denoiser(5, **found.arguments)
    assert ours.load_state_dict(found.tensors)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(x), net(x))


def test_convert_writes_the_tensors_and_what_they_are_of(tmp_path, persistent) -> None:
    data, net = edm_pickle(persistent, 4)
    (tmp_path / "net.pkl").write_bytes(data)
    target = tmp_path / "net.safetensors"
    done = CliRunner().invoke(main, ["convert", str(tmp_path / "net.pkl"), str(target)])
    assert done.exit_code == 0, done.output
    assert same(
        dict(sorted(read_weights(target).tensors.items())), dict(sorted(net.state_dict().items()))
    )
    with safe_open(target, "pt") as file:
        about = json.loads(file.metadata()["network"])
    assert about == {"class": "Denoiser", "arguments": {"sigma_data": 0.25}}
    assert "Denoiser" in done.output
    with pytest.raises(ValueError, match=r"target must end in \.safetensors"):
        convert_weights(tmp_path / "net.pkl", tmp_path / "net.pt")


# --- what must not be done ---


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def hostile(touched: Path) -> dict[str, bytes]:
    """Pickles that run code, ask for memory, never end, or reach outside of what they hold."""
    put = struct.pack
    nested = b")" + b"2\x86" * 60  # 60 times a tuple of the last tuple, twice
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    ring: dict[str, Any] = {}
    ring["a"] = ring
    storage = io.BytesIO()
    torch.save(torch.arange(3.0).untyped_storage(), storage)
    weights = {"w": torch.ones(3)}
    old = io.BytesIO()
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    archive = io.BytesIO()
    torch.save(weights, archive)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(3_000_000))
    far = io.BytesIO()
    with zipfile.ZipFile(far, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        file.filelist[0].header_offset = 2**63
    twice = archive.getvalue().replace(b"FloatStorage", b"LongStorage\n")
    return {
        "code": pickle.dumps(Runs(touched)),
        "code, protocol 0": pickle.dumps(Runs(touched), protocol=0),
        "code in a state dict": pickle.dumps({"w": Runs(touched)}),
        "system": b"cos\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR.",
        "system by the stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
        "instance": b"\x80\x02(i__main__\nRuns\n.",
        "memory of 34 GB": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "bytes of 10 GB": b"\x80\x04\x8e" + put("<Q", 10**10) + b"abc.",
        "text of 2 GB": b"\x80\x04X" + put("<I", 2**31 - 1) + b"abc.",
        "number of a million digits": b"\x80\x02L" + b"9" * 10**6 + b"L\n.",
        "number of 100 kB": b"\x80\x02\x8b" + put("<i", 10**5) + b"\x01" * 10**5 + b".",
        "key that hashes for ever": b"\x80\x02}" + nested + b"K\x01s.",
        "set that hashes for ever": b"\x80\x04\x8f(" + nested + b"\x90.",
        "lists in lists": pickle.dumps(deep),
        "a dictionary in itself": pickle.dumps(ring),
        "a million lists": b"\x80\x02(" + b"]" * 10**6 + b"l.",
        "bytes of no byte": b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n"
        b"(ctorch.storage\n_load_from_bytes\nc_codecs\nencode\nX\x02\0\0\0\xc4\x80"
        b"X\x06\0\0\0latin1\x86R\x85RK\0K\x01\x85K\x01\x85\x89NtRs.",
        "no stop": b"\x80\x02N",
        "no mark": b"\x80\x02Nt.",
        "an empty stack": b"\x80\x020.",
        "unknown memory": b"\x80\x02h\x05.",
        "an extension": b"\x80\x02\x82\x01.",
        "a storage cut short": old.getvalue()[:-3],
        "a storage of another kind": old.getvalue().replace(b"FloatStorage", b"CuteStorages"),
        "a tensor outside of its storage": old.getvalue().replace(b"K\x03\x85", b"K\x7f\x85"),
        "an archive that expands": bomb.getvalue(),
        "an archive of another kind of number": twice,
        "an archive with a part behind its end": far.getvalue(),
        "an archive cut short": archive.getvalue()[:-30],
        "nothing": b"",
        "a text": b"hello",
    }


NAMES = list(hostile(Path("nowhere")))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_ends_in_one_sentence_and_runs_nothing(tmp_path, name) -> None:
    touched = tmp_path / "touched"
    path = tmp_path / "net.pkl"
    path.write_bytes(hostile(touched)[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="read_weights: ") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not touched.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


class Stored:
    """A storage as EDM's pickles have it: the bytes of a file of torch."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.raw,)


class View:
    def __init__(self, raw: bytes, first: int, size: int) -> None:
        self.arguments = (Stored(raw), first, (size,), (1,), False, None)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def shared(kind: str) -> bytes:
    """A file of 1 MB and its 1500 tensors, which would have 1.5 GB if each had its own numbers."""
    row = torch.zeros(2**18)
    file = io.BytesIO()
    if kind == "EDM":
        torch.save(row._typed_storage(), file, _use_new_zipfile_serialization=False)
        raw = file.getvalue()
        return pickle.dumps({str(i): View(raw, i, len(row) - i) for i in range(1500)})
    rows = {str(i): row[i:] for i in range(1500)}
    torch.save(rows, file, _use_new_zipfile_serialization=kind == "archive")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["archive", "old format", "EDM"])
def test_tensors_that_share_a_storage_do_not_multiply_it(tmp_path, kind: str) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(shared(kind))
    assert path.stat().st_size < 2**21
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="got one that holds tensors of 16 times its size, all"):
        read_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_tensors_of_one_storage_stay_one_and_are_written_apart(tmp_path) -> None:
    """Sixteen layers with one weight, as ALBERT's, take the memory of one."""
    layer = nn.Linear(4, 4)
    net = nn.Sequential(*[layer] * 16)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = read_weights(tmp_path / "net.pt").tensors
    assert same(found, net.state_dict())
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 2
    convert_weights(tmp_path / "net.pt", tmp_path / "net.safetensors")
    assert same(
        dict(sorted(read_weights(tmp_path / "net.safetensors").tensors.items())),
        dict(sorted(net.state_dict().items())),
    )


def test_a_network_inside_itself_is_refused(tmp_path) -> None:
    loop = nn.Sequential(nn.Linear(1, 1))
    loop._modules["1"] = loop
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(loop))
    with pytest.raises(ValueError, match="modules more than 100 deep"):
        read_weights(tmp_path / "net.pkl")


def test_shared_modules_do_not_multiply(tmp_path) -> None:
    """2⁵⁰ paths through 50 modules: the count of modules is bounded."""
    inner: nn.Module = nn.Identity()
    for _ in range(50):
        outer = nn.Module()
        outer._modules.update(a=inner, b=inner)
        inner = outer
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(inner))
    with pytest.raises(ValueError, match="more than 100000 modules"):
        read_weights(tmp_path / "net.pkl")


def test_all_that_pickle_writes_is_read_back_as_it_was() -> None:
    value = {
        "text": "ä" * 300,
        "bytes": b"\x00" * 300,
        "whole": [0, -1, 255, 65535, 2**40, -(2**70)],
        "real": (1.5, float("inf")),
        "flags": [True, False, None],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        3: {"x": []},
    }
    for protocol in (3, 4, 5):
        data = b"\x00\x00" + pickle.dumps(value, protocol=protocol)
        assert read_pickle(data + b"rest", 2) == (value, len(data))
    assert pickletools.genops  # the list of instructions is the standard library's


# --- what a user gets wrong ---


def test_wrong_parts_are_told_with_the_right_ones(tmp_path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": {"w": torch.ones(1)}, "step": 1}, path)
    with pytest.raises(ValueError, match="part must be one of model, step, got ema; pass one"):
        read_weights(path, "ema")
    with pytest.raises(ValueError, match=r"got the entries model, step; pass part='model'"):
        read_weights(path)
    assert read_weights(path, "model").tensors["w"].item() == 1
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt", "pkl"])
def test_load_and_the_commands_say_how_weights_alone_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Linear(2, 3)
    path = tmp_path / f"net.{ending}"
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match=r"checkpoint of this package, got net\..*read_weights"):
        load(path)
    for line in (f"info {path}", f"sample --model {path} -n 1 --out {tmp_path / 'out'}"):
        told = CliRunner().invoke(main, line.split())
        assert told.exit_code == 2
        assert "sde-diffusion convert PATH net.safetensors; then weights.fill(net" in told.output
    # The remedy, typed.
    done = CliRunner().invoke(main, ["convert", str(path), "net.safetensors"])
    assert done.exit_code == 0, done.output
    other = torch.nn.Linear(2, 3)
    read_weights("net.safetensors").fill(other)
    assert torch.equal(other.weight, network.weight)
    with pytest.raises(ValueError, match=r"or take its weights alone with read_weights\(path\)"):
        load("net.safetensors")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda net: net,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda net: nn.ModuleDict({"_orig_mod": net}),
    "Lightning": lambda net: nn.ModuleDict({"model": nn.ModuleDict({"diffusion_model": net})}),
}


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_weights_of_a_wrapped_network_fill_the_bare_one(wrapped, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = tmp_path / "net.pt"
    torch.save({"model": wrapped(net).half().state_dict()}, path)
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert read_weights(path, "model").fill(other) is other
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name].to(tensor.dtype)), name
        assert tensor.dtype in (torch.float32, torch.int64)


def test_a_network_that_has_the_prefix_itself_keeps_it(tmp_path) -> None:
    """Its own module is called "module": nothing is left out, and of a wrapped one once."""
    net = nn.ModuleDict({"module": nn.Linear(2, 2)})
    for saved in (net, nn.DataParallel(net)):
        torch.save(saved.state_dict(), tmp_path / "net.pt")
        other = nn.ModuleDict({"module": nn.Linear(2, 2)})
        read_weights(tmp_path / "net.pt").fill(other)
        assert torch.equal(other["module"].weight, net["module"].weight)


def test_weights_of_another_network_are_refused_by_name_and_change_nothing(tmp_path) -> None:
    torch.save(nn.DataParallel(nn.Linear(2, 3)).state_dict(), tmp_path / "net.pt")
    weights = read_weights(tmp_path / "net.pt")
    for network, text in (
        (nn.Linear(2, 4), r"fill: bias must match the network's shape \(4,\), got shape \(3,\)"),
        (nn.Linear(2, 3, bias=False), "fill: module.bias must match the network's no such tensor"),
        (nn.Sequential(nn.Linear(2, 3)), r"fill: 0.bias must match .* got no such tensor; build"),
    ):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=text):
            weights.fill(network)
        assert all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())
    with pytest.raises(TypeError, match="fill: network must be a Module object, got dict; build"):
        weights.fill({})


def test_a_network_among_others_is_filled_from_the_names_under_its_prefix(tmp_path) -> None:
    """A checkpoint of Lightning holds the loss's weights too, and averages of the same names."""
    net, average = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {"loss.scale": torch.ones(1)}
    for prefix, one in (("model.", net), ("model_ema.", average)):
        state |= {f"{prefix}{name}": tensor for name, tensor in one.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.ckpt")
    weights = read_weights(tmp_path / "net.ckpt", "state_dict")
    with pytest.raises(ValueError, match=r"'model_ema\.' \(averages\) or prefix='model\.', which"):
        weights.fill(nn.Linear(2, 3))
    for prefix, one in (("model.", net), ("model_ema.", average)):
        filled = weights.fill(nn.Linear(2, 3), prefix=prefix)
        assert torch.equal(filled.weight, one.weight)
    with pytest.raises(ValueError, match=r"got no such tensor; pass prefix='model_ema\.' "):
        weights.fill(nn.Linear(2, 3), prefix="ema.")


def lucidrains() -> tuple[dict[str, Any], nn.Module]:
    """A trainer's file: a diffusion with its network inside, and averages of both."""
    torch.manual_seed(0)

    def diffusion() -> nn.Module:
        made = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))})
        made.register_buffer("betas", torch.linspace(0, 1, 4))
        return made

    online, average = diffusion(), diffusion()
    ema = nn.ModuleDict({"online_model": online, "ema_model": average})
    ema.register_buffer("step", torch.tensor(7))
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
    file = {"step": 7, "model": online.state_dict(), "opt": optimizer, "ema": ema.state_dict()}
    return file, average["model"]


def test_averaged_weights_are_named_first_and_all_that_fit_are_named(tmp_path) -> None:
    file, average = lucidrains()
    torch.save(file, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match=r"; pass part='ema' or part='model', which holds") as it:
        read_weights(tmp_path / "model-1.pt")
    part = re.findall(r"part='(\w+)'", str(it.value))[0]
    weights = read_weights(tmp_path / "model-1.pt", part)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    words = (
        r"; pass prefix='ema_model\.model\.' \(averages\) or prefix='online_model\.model\.', which"
    )
    with pytest.raises(ValueError, match=words) as refused:
        weights.fill(net)
    prefixes = re.findall(r"prefix='([\w.]+)'", str(refused.value))
    inside = file["ema"]
    for prefix in prefixes:
        weights.fill(net, prefix=prefix)
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, inside[f"{prefix}{name}"])
    weights.fill(net, prefix=prefixes[0])
    assert torch.equal(net[0].weight, average[0].weight)


def test_only_prefixes_that_fit_are_named(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    torch.save(net.state_dict() | {"loss": torch.ones(1)}, tmp_path / "net.pt")
    weights = read_weights(tmp_path / "net.pt")
    # Its first layer's names are another network's, of other shapes: no prefix would help.
    with pytest.raises(ValueError, match=r"got shape .*; build the network with .* with$"):
        weights.fill(nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"pass prefix='1\.', which takes no others"):
        weights.fill(nn.Linear(3, 2))
    assert torch.equal(weights.fill(nn.Linear(3, 2), prefix="1.").weight, net[1].weight)
    with pytest.raises(ValueError, match=r"got shape .*; build the network with .* with$"):
        weights.fill(nn.Identity())
    # All of the network's, and others beside them, which no prefix leaves out.
    for prefix, name in (("", "n"), ("model.", "'model.' + n")):
        held = {f"{prefix}{key}": tensor for key, tensor in weights.tensors.items()}
        more = ForeignWeights(held | {"epoch": torch.ones(1)})
        empty = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        with pytest.raises(ValueError, match="or leave out the others: ForeignWeights") as refused:
            more.fill(empty)
        typed = re.search(r"ForeignWeights\(.*", str(refused.value))[0]
        assert f"[{name}]" in typed
        names = {"ForeignWeights": ForeignWeights, "weights": more, "net": empty}
        assert torch.equal(eval(typed, names)[1].weight, net[1].weight)


@pytest.mark.parametrize("wrong", [3, ["model."], b"model."])
def test_a_prefix_that_is_no_text_is_refused(wrong) -> None:
    with pytest.raises(TypeError, match=r"prefix must be a text, got .* prefix='model\.'"):
        ForeignWeights({"model.weight": torch.ones(1)}).fill(nn.Linear(1, 1), prefix=wrong)


def test_parts_are_named_that_hold_tensors_alone(tmp_path) -> None:
    """A checkpoint of Lightning begins with its epoch; one of score_sde keeps averages inside."""
    state = nn.Linear(2, 3).state_dict()
    lightning = {"epoch": 3, "global_step": 8, "state_dict": state, "optimizer_states": [{}]}
    averages = {"decay": 0.9, "shadow_params": list(state.values())}
    score_sde = {"optimizer": {"state": {}}, "model": state, "ema": averages, "step": 4}
    nothing = {"epoch": 3, "hyper_parameters": {"lr": 1e-3}}
    path = tmp_path / "net.ckpt"
    for file, words in (
        (lightning, "pass part='state_dict', which"),
        (score_sde, "pass part='ema.shadow_params' or part='model', which"),
        ({"trainer": score_sde}, "pass part='trainer.model', which"),
        (nothing, "save a state dict with safetensors.torch.save_file"),
    ):
        torch.save(file, path)
        with pytest.raises(ValueError, match=f"; {re.escape(words)}") as refused:
            read_weights(path)
        for part in re.findall(r"part='([\w.]+)'", str(refused.value)):
            found = read_weights(path, part).tensors.values()
            assert all(torch.equal(a, b) for a, b in zip(found, state.values(), strict=True))
    torch.save({"trainer": score_sde}, path)
    with pytest.raises(
        ValueError, match=r"its part trainer .* part='trainer\.ema\.shadow_params'"
    ):
        read_weights(path, "trainer")
