"""Training on sequences of different lengths."""

import json
import sys

import pytest
import torch
from small_trainings import events, names, same_bits, stop_after

from autoregressive_diffusion_pytorch import (
    AutoregressiveEnergy,
    AutoregressiveFlow,
    SequenceTrainer,
)
from autoregressive_diffusion_pytorch.training.loop import TrainingStopped

SMALL = dict(
    dim=16, dim_input=3, max_seq_len=9, depth=1, heads=2, dim_head=8, mlp_depth=1, predict_end=True
)


def sequences(count=12, labels=True):
    generator = torch.Generator().manual_seed(0)
    seqs = [torch.randn(2 + i % 7, 3, generator=generator) * 4 + 2 for i in range(count)]
    return [(seq, i % 2) for i, seq in enumerate(seqs)] if labels else seqs


def make_trainer(folder, model=None, dataset=None, **kwargs):
    torch.manual_seed(0)
    settings = dict(num_train_steps=6, batch_size=4, checkpoint_every=3, num_samples=4)
    settings |= dict(save_results_every=3, sample_kwargs=dict(num_steps=1))
    folders = dict(
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "results",
        logs_folder=folder / "logs",
        accelerate_kwargs=dict(cpu=True),
    )
    model = AutoregressiveFlow(**SMALL, num_classes=2) if model is None else model
    dataset = sequences() if dataset is None else dataset
    return SequenceTrainer(model, dataset=dataset, **(settings | folders | kwargs))


def test_a_run_on_sequences_resumes_to_the_same_bits(tmp_path):
    options = dict(validation_dataset=sequences(2))
    whole = make_trainer(tmp_path / "whole", **options)
    whole()
    with pytest.raises(TrainingStopped):
        stop_after(4, make_trainer(tmp_path / "parts", **options))()
    torch.rand(3)
    resumed = make_trainer(tmp_path / "parts", resume=True, **options)
    resumed()
    assert same_bits(resumed, whole)
    assert resumed.validation.loss == whole.validation.loss
    results = "results.6.json"
    assert (tmp_path / "whole/results" / results).read_text() == (
        tmp_path / "parts/results" / results
    ).read_text()


def test_statistics_and_plots_of_samples_beside_real_ones(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer()
    files = [f"results.{step}.{ending}" for step in (3, 6) for ending in ("json", "png")]
    assert names(tmp_path / "results") == sorted(files)
    found = json.loads((tmp_path / "results/results.6.json").read_text())
    assert found["step"] == 6
    assert found["count"] == 4
    seqs = [sequences()[i][0] for i in (0, 3, 6, 9)]
    assert found["real"]["mean_length"] == sum(map(len, seqs)) / 4
    logged = events(tmp_path)
    assert {"quantile_error", "autocorrelation_error", "length_distance"} <= logged.keys()
    assert "sequences_per_second" in logged


def test_the_validation_loss_is_in_nats_per_token(tmp_path):
    held_out = sequences(3)
    trainer = make_trainer(tmp_path, validation_dataset=held_out)
    model = trainer.ema.ema_model.eval()
    total = sum(
        model.log_prob(seq[None], labels=[label], divergence="exact").sum().item()
        for seq, label in held_out
    )
    tokens = sum(len(seq) for seq, _ in held_out)
    assert trainer.validate() == pytest.approx(-total / tokens, rel=2e-3)


def test_without_a_density_it_is_the_loss(tmp_path):
    model = AutoregressiveEnergy(**SMALL)
    seqs = sequences(labels=False)
    trainer = make_trainer(
        tmp_path, model, seqs, validation_dataset=seqs[:5], sample_kwargs=None, num_train_steps=1
    )
    trainer()
    assert trainer.validation.loss > 0


def test_each_token_counts_the_same_whatever_its_batch(tmp_path):
    """The mean of the losses over the batches of an epoch is that over all tokens."""

    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, seq, lens=None):
            mask = torch.ones(seq.shape[:2], dtype=torch.bool)
            if lens is not None:
                mask = torch.arange(seq.shape[1]) < lens[:, None]
            return seq[mask].mean() + self.weight

        def sample(self, batch_size, generator=None, num_steps=None):
            return torch.randn(batch_size, 4, 3)

    seqs = sequences(labels=False)
    trainer = make_trainer(tmp_path, Counts(), seqs, num_train_steps=3, learning_rate=1e-12)
    losses, loss = [], trainer.loss
    trainer.loss = lambda model, batch: losses.append(loss(model, batch)) or losses[-1]
    trainer()
    assert torch.stack(losses[:3]).mean().item() == pytest.approx(
        torch.cat(seqs).mean().item(), abs=1e-5
    )


def test_vectors_of_different_numbers_are_padded_too(tmp_path):
    dataset = [
        dict(seq=seq, cond=torch.randn(1 + i % 3, 5))
        for i, seq in enumerate(sequences(labels=False))
    ]
    model = AutoregressiveFlow(**SMALL, dim_cond=5)
    trainer = make_trainer(tmp_path, model, dataset, num_train_steps=2)
    trainer()
    assert (tmp_path / "results/results.2.json").exists()


def test_sequences_that_do_not_fit_are_told_before_the_start(tmp_path):
    with pytest.raises(ValueError, match="at most max_seq_len = 9 tokens, got 12 at index 1"):
        make_trainer(tmp_path, dataset=[(torch.randn(3, 3), 0), (torch.randn(12, 3), 1)])
    for item in (torch.zeros(4, 3).long(), torch.zeros(3), dict(images=torch.zeros(2, 3))):
        with pytest.raises(TypeError, match="must give sequences"):
            make_trainer(tmp_path, dataset=[item])
    with pytest.raises(ValueError, match="seq must be of shape"):
        make_trainer(tmp_path, dataset=[(torch.randn(3, 4), 0)])
    with pytest.raises(ValueError, match="sample_kwargs"):
        make_trainer(tmp_path, sample_kwargs=dict(solver="none"))


def test_reading_real_sequences_for_a_plot_draws_no_random_numbers(tmp_path):
    class Cropped(list):
        def __getitem__(self, index):
            return torch.randn(5, 3), 0

    trainer = make_trainer(tmp_path, dataset=Cropped([0] * 8), sample_kwargs=dict(labels=[1, 0]))
    before = torch.get_rng_state()
    real = trainer.samples.real()["seq"]
    assert torch.equal(torch.get_rng_state(), before)
    again = make_trainer(tmp_path, dataset=Cropped([0] * 8)).samples.real()["seq"]
    assert torch.equal(again, real)


def test_nats_that_cannot_be_computed_are_told_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match="likelihoods need torchdiffeq"):
        make_trainer(tmp_path, validation_dataset=sequences(2))
    make_trainer(tmp_path)
