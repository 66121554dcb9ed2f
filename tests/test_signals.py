"""Series, volumes and clips, by the commands: an untrained network has a closed form."""

from __future__ import annotations

import csv
import json
import math
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from sde_diffusion import VPSDE, Affine, DataSpec, describe, load_data
from sde_diffusion.cli._network import network_for
from sde_diffusion.cli.main import main
from sde_diffusion.data import write_sounds
from sde_diffusion.data.checks import check_fits
from sde_diffusion.nets import UNet
from sde_diffusion.nets.choices import unet_for
from sde_diffusion.pictures.clips import clip_animation
from sde_diffusion.pictures.samples import tiles

SHAPES = {"series": (2, 21), "clips": (1, 3, 6, 5)}


def run(*words: Any) -> Any:
    ended = CliRunner().invoke(main, [*map(str, words)])
    assert ended.exit_code == 0, ended.output
    return ended


@pytest.mark.parametrize("name", SHAPES)
def test_commands_work_on_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, *shape)).astype(np.float32)
    np.save(f"{name}.npy", data)
    words = ("--data", f"{name}.npy", "--layout", "cl" if name == "series" else "cdhw")
    # A step so short that the network stays 0: eps = 0, whose flow is dx/dt = rate x.
    brief = ("--steps", 1, "--batch-size", 2, "--width", 8, "--learning-rate", 1e-30)
    run("train", *words, *brief, "--scale", "none", "--out", "run")
    assert describe("run")["network"]["config"]["dims"] == len(shape) - 1
    sde = VPSDE()
    t_min = 1e-5
    start, end = (float(sde.alpha(torch.tensor(t, dtype=torch.float64))) for t in (t_min, 1.0))
    shrunk = end / start

    two = ("--limit", 2, "--tolerance", 1e-3)
    run("likelihood", "--model", "run", *words, *two, "--out", "found")
    with open("found/likelihood.csv") as file:
        nats = [float(row["nats"]) for row in csv.DictReader(file)]
    x = data[:2].reshape(2, -1).astype(np.float64)
    normal = -0.5 * (shrunk * x) ** 2 - 0.5 * math.log(2 * math.pi) + math.log(shrunk)
    assert np.allclose(nats, normal.sum(1), rtol=1e-2, atol=0)

    sampled = ("--model", "run", "--solver", "ddim", "--steps", 3, "-n", 40)
    found = json.loads(run("sample", *sampled, "--out", "drawn", "--json").stdout)
    assert found["no_picture"] is None
    drawn = np.load("drawn/samples.npz")["x"] * shrunk  # the draws of the prior
    assert drawn.shape == (40, *shape)
    assert abs(drawn.std() - 1) < 5 / math.sqrt(2 * drawn.size)

    few = ("--nfe", 5, "--samples", 3, "--replicates", 2, "--reference-steps", 2)
    run("compare", "--model", "run", *words, "--solver", "ddim", *few, "--out", "compared")
    assert Path("compared/samples-run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("shape", "levels"), [((2, 16000), 5), ((1, 100), 3), ((3, 16), 2), ((1, 64, 64, 64), 4)]
)
def test_the_network_of_a_shape_sees_at_most_a_thousand_places_at_once(
    shape: tuple[int, ...], levels: int
) -> None:
    config = unet_for(shape)
    assert len(config["multipliers"]) == levels
    assert config["attention"] == [levels - 1]
    net = UNet(**config)
    places = math.prod(-(-n // 2 ** (levels - 1)) for n in shape[1:])
    assert places <= 1024
    assert net.config["channels"] == shape[0]


@pytest.mark.parametrize(
    ("shape", "asked", "multipliers", "attention"),
    [
        ((1, 16, 64, 64), {"strides": (1, 2, 2)}, [1, 2, 2, 2], [3]),  # 16 · 8 · 8 places
        ((1, 16, 64, 64), {"strides": (1, 1, 1)}, [1, 2, 2], []),  # which no level would lessen
        ((2, 16000), {"multipliers": [1, 2]}, [1, 2], []),  # 8000 places
        ((2, 1600), {"multipliers": [1, 2]}, [1, 2], [1]),
        ((1, 28, 28), {"multipliers": [1, 2, 2, 4]}, [1, 2, 2, 4], [3]),
        ((1, 28, 28), {"strides": (1, 2)}, [1, 2, 2], [2]),
    ],
)
def test_the_network_fits_the_levels_and_strides_that_are_asked_for(
    shape: tuple[int, ...], asked: Any, multipliers: list[int], attention: list[int]
) -> None:
    config = network_for(shape, {}, dict(asked)).config
    assert config["multipliers"] == multipliers
    assert config["attention"] == attention


# Sounds and clips ---------------------------------------------------------------------------


def written(path: Path, pcm: Any, rate: int = 8000, width: int = 2) -> Path:
    """A WAV file by the standard library; pcm (samples, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2" if width == 2 else "u1").tobytes())
    return path


def pcm(samples: int, channels: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (samples, channels))


def test_sounds_are_cut_into_clips_and_written_as_they_were(tmp_path: Path) -> None:
    sound = pcm(25, 2)
    path = written(tmp_path / "song.wav", sound, rate=44100)
    data = load_data(path, "all", length=8)
    assert data.spec == DataSpec("song", (2, 8), 2**16, rate=44100)
    for i in range(3):
        assert data.values[i].T.tolist() == (sound[8 * i : 8 * i + 8] + 2**15).tolist()
    assert data.notes == ("song.wav: 1 samples at the ends of 1 sounds fill no clip",)
    write_sounds(tmp_path / "again.wav", data.values.numpy(), 44100)
    again = load_data(tmp_path / "again.wav", "all", length=8)
    assert torch.equal(again.values, data.values)
    with wave.open(str(tmp_path / "again.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 44100, 24)
    assert load_data(path, "all").spec.shape == (2, 25)


def test_the_rate_is_part_of_what_the_data_are() -> None:
    spec = DataSpec("song", (1, 4), 2**16, rate=8000)
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert "rate=8000" in repr(spec)
    silent = DataSpec("song", (1, 4), 2**16)
    assert "rate" not in silent.to_json()
    assert "rate" not in vars(silent)  # whose fingerprint is that of version 0.1
    check_fits(silent, spec)
    check_fits(spec, silent)
    with pytest.raises(ValueError, match="samples must have the model's rate, 8000 a second, got"):
        check_fits(spec, DataSpec("song", (1, 4), 2**16, rate=16000))
    with pytest.raises(ValueError, match="DataSpec: rate must be at least 1, got 0"):
        DataSpec("song", (1, 4), 2**16, rate=0)


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (
            {"rate": 16000},
            "have the rate 8000 of a.wav, got 16000; convert it with ffmpeg .*-ar 8000",
        ),
        ({"pcm": pcm(9, 2)}, "have the 1 channels of a.wav, got 2; convert it .* -ac 1"),
        ({"pcm": pcm(7, 1)}, "be 9 samples long like a.wav, got 7; pass --length 7"),
        (
            {"width": 1},
            "be a whole WAV file of .* floats, got 8 bits a sample, of format 1; convert",
        ),
        ({"content": b"RIFF"}, "be a whole WAV file of 16-bit PCM or floats, got .*; convert it"),
        ({"cut": 5}, "be a whole WAV file .*, got .* bytes of sound, 18 by its header"),
    ],
)
def test_sounds_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, other: dict[str, Any], rule: str
) -> None:
    written(tmp_path / "a.wav", pcm(9, 1))
    made = {"pcm": pcm(9, 1), "rate": 8000, "width": 2} | other
    path = written(tmp_path / "b.wav", made["pcm"], made["rate"], made["width"])
    if "content" in other:
        path.write_bytes(other["content"])
    if "cut" in other:
        path.write_bytes(path.read_bytes()[: -other["cut"]])
    with pytest.raises(ValueError, match=f"b.wav must {rule}"):
        load_data(tmp_path, "all")


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("code", "kind"), [(1, "<i2"), (3, "<f4"), (3, "<f8")])
def test_sounds_of_every_header_are_read(
    tmp_path: Path, code: int, kind: str, extensible: bool
) -> None:
    # As multimedia libraries write them: KSDATAFORMAT_SUBTYPE is the code and a fixed tail.
    sound = pcm(6, 2).astype(kind) / (1 if code == 1 else 2**15)
    size = np.dtype(kind).itemsize
    first = 0xFFFE if extensible else code
    form = struct.pack("<HHIIHH", first, 2, 8000, 16000 * size, 2 * size, 8 * size)
    if extensible:
        guid = struct.pack("<HH", code, 0) + bytes.fromhex("000010008000 00aa00389b71")
        form += struct.pack("<HHI", 22, 8 * size, 3) + guid
    content = (
        b"WAVE"
        + chunk(b"fmt ", form)
        + chunk(b"LIST", b"odd")
        + chunk(b"data", sound.astype(kind).tobytes())
    )
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    data = load_data(tmp_path / "a.wav", "all", length=3)
    assert data.spec.rate == 8000
    assert data.spec.levels == (2**16 if code == 1 else None)
    expected = sound.reshape(2, 3, 2).swapaxes(1, 2) + (2**15 if code == 1 else 0)
    assert np.array_equal(data.values.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize(("channels", "frame"), [(1, 0), (0, 0), (2, 2)])
def test_sounds_whose_frames_do_not_hold_their_channels_are_refused(
    tmp_path: Path, channels: int, frame: int
) -> None:
    form = struct.pack("<HHIIHH", 1, channels, 8000, 16000, frame, 16)
    content = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", bytes(8))
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    with pytest.raises(ValueError, match=r"a\.wav must be a whole WAV file of 16-bit PCM"):
        load_data(tmp_path / "a.wav", "all")


def test_sounds_of_floats_beside_pcm_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.wav", pcm(4, 1))
    form = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)
    content = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", np.zeros(4, "<f4").tobytes())
    (tmp_path / "b.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    with pytest.raises(ValueError, match=r"b\.wav must hold 16-bit PCM like a\.wav, got"):
        load_data(tmp_path, "all")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"length": 2}, "length must be left out for .*, which holds no sounds, got 2; drop it"),
        ({"size": 4}, "size must be left out for .*, which holds no pictures, got 4; drop it"),
        ({"frames": "clip"}, "frames must be left out for .*, which holds no pictures, got clip"),
    ],
)
def test_what_is_asked_of_other_kinds_of_data_is_refused(
    tmp_path: Path, asked: Any, message: str
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    for source in (tmp_path / "a.npy", "digits"):
        with pytest.raises(ValueError, match=message):
            load_data(source, **asked)
    (tmp_path / "other").mkdir()
    if "length" in asked:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "other" / "a.png")
    else:
        written(tmp_path / "other" / "a.wav", pcm(4, 1))
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "other", "all", **asked)


def test_a_sound_shorter_than_the_clips_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", pcm(9, 1))
    with pytest.raises(ValueError, match=r"be at least 10 samples long, got 9 .*; leave it"):
        load_data(path, "all", length=10)


def test_samples_of_sounds_can_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "song.wav", pcm(160, 1), rate=22050)
    brief = ("--steps", 1, "--batch-size", 2, "--width", 8, "--out", "run")
    run("train", "--data", "song.wav", "--length", 16, *brief)
    run("sample", "--model", "run", "--steps", 2, "-n", 3, "--out", "drawn")
    played = load_data("drawn/samples.wav", "all", length=16)
    assert played.spec.rate == 22050
    assert np.array_equal(played.values.numpy(), np.load("drawn/samples.npz")["levels"])
    written(tmp_path / "slow.wav", pcm(160, 1), rate=8000)
    words = ["likelihood", "--model", "run", "--data", "slow.wav", "--limit", "2"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "have the model's rate, 22050 a second, got 8000" in refused.output


def film(path: Path, frames: int, size: int = 6) -> Any:
    values = np.random.default_rng(frames).integers(0, 256, (frames, size, size)).astype("u1")
    first, *rest = (Image.fromarray(frame) for frame in values)
    first.save(path, save_all=True, append_images=rest)
    return values


def test_moving_pictures_become_clips_and_are_refused_at_other_lengths(tmp_path: Path) -> None:
    films = [film(tmp_path / f"{name}.tif", 4) for name in "ab"]
    clips = load_data(tmp_path, "all", frames="clip")
    assert np.array_equal(clips.values.numpy(), np.stack(films)[:, None])
    film(tmp_path / "c.tif", 3)
    with pytest.raises(
        ValueError, match=r"c.tif must have the 4 frames of a.tif, got 3; cut them"
    ):
        load_data(tmp_path, "all", frames="clip")


def test_clips_are_animated_tile_by_tile(tmp_path: Path) -> None:
    x = torch.rand(5, 1, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip_animation(x, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        for i in range(3):
            animation.seek(i)
            shown = torch.from_numpy(np.array(animation.convert("L"))) / 255
            assert torch.allclose(shown, tiles(x[:, :, i]), rtol=0, atol=0.01)


def test_clips_of_scaled_real_data_are_animated_between_their_extremes(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    x = 1e-3 * torch.rand(2, 1, 3, 4, 6, generator=draws) - 5
    spec = DataSpec("real", (1, 3, 4, 6), None, scaling=Affine(7.0, 9.0))
    clip_animation(x, tmp_path / "a.gif", spec)
    grey = 2 * (x - x.min()) / (x.max() - x.min()) - 1
    with Image.open(tmp_path / "a.gif") as animation:
        for i in range(3):
            animation.seek(i)
            shown = torch.from_numpy(np.array(animation.convert("L"))) / 255
            assert torch.allclose(shown, tiles(grey[:, :, i]), rtol=0, atol=0.01)


def test_sounds_and_pictures_in_one_folder_are_refused_and_hidden_files_are_none(
    tmp_path: Path,
) -> None:
    levels = np.arange(2 * 5).reshape(2, 1, 5) + 2**15
    write_sounds(tmp_path / "a.wav", levels, 8000)
    (tmp_path / "._a.wav").write_bytes(b"of a file manager")
    found = load_data(tmp_path, "all", length=5)
    assert np.array_equal(found.values.numpy().astype(int), levels)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"hold sounds or pictures, got b\.png beside sounds"):
        load_data(tmp_path, "all")


@pytest.mark.parametrize(
    ("levels", "rate", "says"),
    [
        (np.zeros((2, 5), int), 8000, r"have the shape \(N, channels, L\), got \(2, 5\)"),
        (np.full((1, 1, 3), 70000), 8000, r"lie in 0 … 65535, got 70000 … 70000"),
        (np.full((1, 1, 3), -5), 8000, r"lie in 0 … 65535, got -5 … -5"),
        (np.zeros((1, 1, 3), int), 0, "rate must be at least 1, got 0"),
    ],
)
def test_what_is_no_sound_is_not_written(
    tmp_path: Path, levels: Any, rate: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        write_sounds(tmp_path / "a.wav", levels, rate)
    assert not (tmp_path / "a.wav").exists()
