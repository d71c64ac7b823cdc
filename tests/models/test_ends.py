import math

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import (
    AutoregressiveFlow,
    GenerationSettings,
    MaskedAutoregressive,
)

SOLVER = dict(solver="rk4", num_steps=2, divergence="exact")
SMALL = dict(dim=16, dim_input=2, depth=1, heads=2, dim_head=8, mlp_depth=1)


def small_model(**kwargs):
    torch.manual_seed(0)
    return AutoregressiveFlow(**SMALL | dict(max_seq_len=8, predict_end=True) | kwargs)


def test_geometric_lengths_are_learned():
    """Tokens that end with a probability of p: the head finds p in closed form, though its loss
    gives both answers the same weight."""
    p, longest = 0.2, 10
    model = small_model(max_seq_len=longest)
    count = 4000
    lens = torch.distributions.Geometric(p).sample((count,)).long() + 1
    lens = lens.clamp(max=longest)
    seq = torch.randn(count, longest, 2)
    optimizer = torch.optim.Adam(model.end_head.parameters(), lr=0.05)
    model(seq[:1000], lens=lens[:1000])  # measures
    for step in range(60):
        part = slice(step % 4 * 1000, step % 4 * 1000 + 1000)
        z = model.conditions(seq[part]).detach()
        mask = torch.arange(longest) < lens[part, None]
        asked, is_end = model._answers(seq[part], mask)
        loss = model.end_head.losses(z[:, 1:][asked[:, :-1]], is_end).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # the share of ends in the data, which the sampling error moves
    asked = (lens - (lens == longest).long()).sum()
    share = ((lens < longest).sum() / asked).item()
    probability = model.end_head.log_odds(model.conditions(seq[:500])).sigmoid()
    assert probability.mean().item() == pytest.approx(share, abs=0.02)
    # and drawn lengths are so distributed
    _, drawn = model.sample(2000, num_steps=1)
    for length in range(1, longest):
        expected = (1 - share) ** (length - 1) * share
        allowed = 4 * math.sqrt(expected / 2000) + 0.02
        assert (drawn == length).float().mean().item() == pytest.approx(expected, abs=allowed)


def test_log_probs_hold_those_of_going_on_and_ending():
    model = stir(small_model())
    seq, lens = torch.randn(3, 8, 2), torch.tensor([1, 5, 8])
    model(seq, lens=lens)  # measures
    model.eval()
    ends = model.log_prob(seq, lens=lens, **SOLVER)
    head, model.end_head = model.end_head, None
    tokens = model.log_prob(seq, lens=lens, **SOLVER)
    log_odds = head.log_odds(model.conditions(model.normalization(seq)))
    for row, length in enumerate(lens.tolist()):
        for i in range(length):
            expected = tokens[row, i].item()
            if i < 7:  # after the last possible token a sequence ends
                odds = log_odds[row, i + 1].item()
                odds = odds if i == length - 1 else -odds
                expected -= math.log1p(math.exp(-odds))
            assert ends[row, i].item() == pytest.approx(expected, abs=1e-3)


def test_the_probabilities_of_all_lengths_add_up_to_one():
    """Without any dependence on the tokens the end head alone gives the lengths."""
    model = small_model()
    torch.nn.init.constant_(model.end_head.proj.bias, -0.7)
    seq = torch.zeros(8, 8, 2)
    lens = torch.arange(1, 9)
    mask = torch.arange(8) < lens[:, None]
    asked, is_end = model._answers(seq, mask)
    after = model.conditions(seq)[:, 1:]
    scores = torch.zeros(8, 8).masked_scatter(
        asked, model.end_head.log_prob(after[asked[:, :-1]], is_end)
    )
    assert scores.sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_padding_changes_neither_loss_nor_density():
    model = stir(small_model(max_seq_len=12))
    seq, lens = torch.randn(3, 5, 2), torch.tensor([5, 2, 3])
    model(seq, lens=lens)  # measures
    padded = torch.cat((seq, torch.full((3, 4, 2), 1e4)), dim=1)
    for method in (model, model.log_prob):
        kwargs = dict(loss_reduction="none") if method is model else SOLVER
        found = []
        for given in (seq, padded):
            torch.manual_seed(3)
            found.append(method(given, lens=lens, **kwargs))
        torch.testing.assert_close(found[1][:, :5], found[0])
        assert (found[1][:, 5:] == 0).all()


def test_samples_stop_where_all_have_ended():
    model = stir(small_model())
    torch.nn.init.constant_(model.end_head.proj.bias, -0.5)
    generator = torch.Generator().manual_seed(0)
    seq, lens = model.sample(20, num_steps=1, generator=generator)
    assert seq.shape == (20, lens.max(), 2)
    assert 1 <= lens.min() < lens.max() <= 8
    assert (seq[torch.arange(seq.shape[1]) >= lens[:, None]] == 0).all()
    assert (seq[torch.arange(seq.shape[1]) < lens[:, None]] != 0).all()
    # a stream tells the same, token by token
    generator = torch.Generator().manual_seed(0)
    streamed = list(model.stream(20, num_steps=1, generator=generator))
    assert torch.equal(torch.stack([tokens for tokens, _ in streamed], dim=1), seq)
    ended = torch.stack([ended for _, ended in streamed], dim=1)
    assert torch.equal((~ended).sum(dim=1), lens)


def test_a_sample_depends_on_its_own_generator_alone():
    model = small_model()
    torch.nn.init.constant_(model.end_head.proj.bias, -1.0)

    def draw(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model.sample(generator=generators, batch_size=len(seeds), num_steps=1)

    seq, lens = draw(1, 2, 3)
    for i, seed in enumerate((1, 2, 3)):
        alone, length = draw(seed)
        assert length.item() == lens[i]
        torch.testing.assert_close(alone[0], seq[i, : lens[i]])


def test_lengths_have_bounds():
    model = small_model()
    torch.nn.init.constant_(model.end_head.proj.bias, 20.0)  # always
    assert model.sample(3, num_steps=1)[1].tolist() == [1, 1, 1]
    assert model.sample(3, num_steps=1, min_seq_len=4)[1].tolist() == [4, 4, 4]
    prompt = torch.randn(1, 3, 2)
    seq, lens = model.sample(2, prompt, num_steps=1)  # at once
    assert lens.tolist() == [3, 3]
    assert torch.equal(seq[0], prompt[0])
    torch.nn.init.constant_(model.end_head.proj.bias, -20.0)  # never
    assert model.sample(3, num_steps=1)[1].tolist() == [8, 8, 8]
    assert model.sample(3, num_steps=1, seq_len=5)[1].tolist() == [5, 5, 5]


def test_a_threshold_is_a_generation_setting():
    model = small_model()
    torch.nn.init.constant_(model.end_head.proj.bias, 0.0)  # one half
    assert (model.sample(9, num_steps=1, end_threshold=0.6)[1] == 8).all()
    model.generation = GenerationSettings(end_threshold=0.4)
    assert (model.sample(9, num_steps=1)[1] == 1).all()


def test_guided_samples_end_as_the_conditional_model_says():
    model = stir(small_model(num_classes=2))
    torch.nn.init.constant_(model.end_head.proj.bias, 20.0)
    assert model.sample(labels=[0, 1], guidance_scale=2.0, num_steps=1)[1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(min_seq_len=0), "min_seq_len must be a whole number from 1 to 8"),
        (dict(min_seq_len=9), "min_seq_len must be a whole number from 1 to 8"),
        (dict(end_threshold=1.5), "end_threshold must be a probability"),
    ],
)
def test_bad_options_are_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_model().sample(1, **kwargs)


def test_models_without_ends_take_no_options_of_them():
    model = small_model(predict_end=False)
    for kwargs in (dict(min_seq_len=2), dict(end_threshold=0.5)):
        with pytest.raises(ValueError, match="predict_end = True"):
            model.sample(1, **kwargs)
    with pytest.raises(ValueError, match="predict_end needs order"):
        small_model(order="random")
    with pytest.raises(TypeError):
        MaskedAutoregressive(**SMALL, head="flow", max_seq_len=8, predict_end=True)
