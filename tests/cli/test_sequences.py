"""Commands on sequences: folders of files, and the built-in speech."""

import json

import numpy as np
import pytest
from command_line import TINY, failed, succeeded

from autoregressive_diffusion_pytorch.data import sequence_files


@pytest.fixture
def tables(tmp_path):
    """Five tables of each of two classes."""
    rng = np.random.default_rng(0)
    for i in range(10):
        file = tmp_path / "tables" / "ab"[i % 2] / f"{i}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(file, rng.normal(size=(4 + i, 3)), delimiter=",", header="x,y,z", comments="")
    return tmp_path / "tables"


def test_from_tables_to_tables(call, tables, tmp_path):
    options = ("--labels", "--hold-out", 0.2, "--sample-every", 2)
    result = succeeded(call("train", tables, *TINY, *options))
    assert result.stdout.splitlines()[0] == "runs/tables/samples/results.2.json"
    config = json.loads((tmp_path / "runs/tables/config.json").read_text())
    assert config["kind"] == "sequences"
    assert config["model"]["predict_end"] is True
    assert config["model"]["max_seq_len"] == 17  # a quarter more than 13
    assert config["classes"] == ["a", "b"]

    lengths = ("--min-length", 3, "--max-length", 5)
    succeeded(call("sample", "runs/tables", "--count", 4, "--steps", 1, *lengths))
    drawn = sorted((tmp_path / "runs/tables/samples/sample.0").rglob("*.csv"))
    assert [f"{file.parent.name}/{file.name}" for file in drawn] == [
        "a/0.csv",
        "a/1.csv",
        "b/0.csv",
        "b/1.csv",
    ]
    for file in drawn:
        assert 3 <= len(np.loadtxt(file, delimiter=",")) <= 5

    given = tables / "a" / "4.csv"
    options = ("--keep-rows", 3, "--count", 2, "--label", "b", "--steps", 1, "--output", "rest")
    succeeded(call("complete", "runs/tables", given, *options))
    known = np.loadtxt(given, delimiter=",", skiprows=1)[:3]
    rests = [np.loadtxt(file, delimiter=",") for file in sorted((tmp_path / "rest/b").iterdir())]
    assert len(rests) == 2
    for rest in rests:
        np.testing.assert_allclose(rest[:3], known, rtol=1e-6)

    result = succeeded(call("evaluate", "runs/tables", "--steps", 1, "--count", 6))
    assert "nats per token" in result.stdout
    report = json.loads((tmp_path / "runs/tables/evaluation/report.2.json").read_text())
    assert report["sequences"] == 2
    assert report["generated"]["count"] == 6
    assert report["nats_per_token"]["standard_error"] > 0

    result = succeeded(call("resume", "runs/tables", "--steps", 3))
    assert "results.3.json" in result.stdout
    succeeded(call("export", "runs/tables", "shared"))


def test_arrays_of_one_length_have_no_end(call, tmp_path):
    (tmp_path / "arrays").mkdir()
    for i in range(4):
        np.save(tmp_path / "arrays" / f"{i}.npy", np.random.default_rng(i).normal(size=(6, 2)))
    succeeded(call("train", "arrays", *TINY, "--head", "energy", "--order", "masked"))
    succeeded(call("sample", "runs/arrays", "--count", 3))
    drawn = [np.load(file) for file in (tmp_path / "runs/arrays/samples/sample.0").iterdir()]
    assert [array.shape for array in drawn] == [(6, 2)] * 3
    config = json.loads((tmp_path / "runs/arrays/config.json").read_text())
    assert "predict_end" not in config["model"]


def test_audio_in_frames(call, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "audio").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).normal(size=1000 + 10 * i) / 10
        soundfile.write(tmp_path / "audio" / f"{i}.wav", noise, 8000)
    assert "--frame, the number of samples per token, is missing" in failed(
        call("train", "audio", *TINY)
    )
    succeeded(call("train", "audio", *TINY, "--frame", 100, "--max-length", 5))
    succeeded(call("sample", "runs/audio", "--count", 1, "--steps", 1))
    drawn, rate = soundfile.read(tmp_path / "runs/audio/samples/sample.0/0.wav")
    assert (len(drawn), rate) == (500, 8000)


def test_audio_as_latents_of_a_codec(call, tmp_path):
    soundfile, diffusers = (pytest.importorskip(name) for name in ("soundfile", "diffusers"))
    sizes = dict(encoder_hidden_size=8, decoder_channels=8, decoder_input_channels=4)
    factors = dict(downsampling_ratios=[2, 4], channel_multiples=[1, 2])
    codec = diffusers.AutoencoderOobleck(**sizes, **factors, audio_channels=1, sampling_rate=8000)
    codec.save_pretrained("codec")
    (tmp_path / "audio").mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).normal(size=80 + i) / 10
        soundfile.write(tmp_path / "audio" / f"{i}.wav", noise, 8000)
    succeeded(call("train", "audio", *TINY, "--codec", "codec", "--no-ends"))
    config = json.loads((tmp_path / "runs/audio/config.json").read_text())
    assert (config["model"]["dim_input"], config["model"]["max_seq_len"]) == (4, 11)
    succeeded(call("sample", "runs/audio", "--count", 1, "--steps", 1))
    drawn, rate = soundfile.read(tmp_path / "runs/audio/samples/sample.0/0.wav")
    assert (len(drawn), rate) == (8 * 11, 8000)
    soundfile.write(tmp_path / "audio" / "0.wav", np.zeros(80), 16000)
    assert "must have 8000 Hz and 1 channels" in failed(
        call("train", "audio", *TINY, "--codec", "codec", "--run", "other")
    )
    assert "--frame, the number of samples per token, excludes a codec" in failed(
        call("train", "audio", *TINY, "--codec", "codec", "--frame", 8, "--run", "other")
    )


def test_speech(call, tmp_path, monkeypatch):
    pytest.importorskip("aeon")
    succeeded(call("train", "speech", *TINY, "--labels", "--no-ends", "--keep-last", 1))
    config = json.loads((tmp_path / "runs/speech/config.json").read_text())
    assert config["classes"][0] == "speaker 1"
    options = ("--label", "speaker 3", "--count", 1, "--steps", 1, "--max-length", 4)
    succeeded(call("sample", "runs/speech", *options))
    (file,) = (tmp_path / "runs/speech/samples/sample.0/speaker 3").iterdir()
    assert np.load(file).shape == (4, 12)


def test_what_is_of_images_is_refused(call, tables, tmp_path):
    assert "--image-size is of images, SOURCE holds sequences" in failed(
        call("train", tables, "--image-size", 8)
    )
    assert "--frame is of sequences, SOURCE holds images" in failed(call("train", "--frame", 8))
    assert "--ends needs --order raster" in failed(
        call("train", tables, "--ends", "--order", "random")
    )
    succeeded(call("train", tables, *TINY))
    for command in (("tune", "runs/tables"), ("distill", "runs/tables")):
        assert "this one is on sequences" in failed(call(*command))
    fill = ("fill", "runs/tables", tables / "a" / "0.csv", "--box", "0,0,1,1")
    assert "is for runs on images" in failed(call(*fill))
    assert "has no use for --curve" in failed(call("evaluate", "runs/tables", "--curve"))
    assert "--flip" in failed(call("resume", "runs/tables", "--steps", 3, "--flip"))
    assert "--files is of images" in failed(call("sample", "runs/tables", "--files", "x"))
    assert "has 4 tokens" in failed(
        call("complete", "runs/tables", tables / "a" / "0.csv", "--keep-rows", 9)
    )


def test_audio_needs_soundfile(call, tmp_path, monkeypatch):
    def missing():
        raise ModuleNotFoundError("audio is read by soundfile, which is not installed")

    monkeypatch.setattr(sequence_files, "_soundfile", missing)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/0.wav").write_bytes(b"RIFF")
    assert "soundfile, which is not installed" in failed(call("train", "audio", "--frame", 10))
