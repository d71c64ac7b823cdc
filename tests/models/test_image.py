import json
import math

import pytest
import torch
from helpers import ideal_head, record_steps, stir

from autoregressive_diffusion_pytorch import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.models.tokenizers import patchify, unpatchify

models = pytest.mark.parametrize(
    "model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow]
)
SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def small_model(model_class, **kwargs):
    return stir(model_class(**(dict(image_size=8, patch_size=4, model=SMALL) | kwargs)), 0.02)


@models
@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"),
    [(8, 4, 3), (8, 4, 1), ((4, 8), 4, 4), ((8, 4), 2, 2), ((8, 12), (4, 3), 3)],
)
def test_images_of_all_shapes(model_class, image_size, patch_size, channels):
    model = small_model(
        model_class, image_size=image_size, patch_size=patch_size, channels=channels
    )
    images = torch.rand(2, channels, *model.image_size)
    loss = model(images)
    assert loss.shape == ()
    loss.backward()
    samples = model.sample(batch_size=2)
    assert samples.shape == images.shape
    assert samples.min() >= 0
    assert samples.max() <= 1


@models
def test_values_from_0_to_1_become_tokens_from_minus_1_to_1(model_class, monkeypatch):
    model = small_model(model_class)
    images = torch.rand(2, 3, 8, 8)
    seen = {}

    def record(seq, **kwargs):
        seen.update(kwargs, seq=seq)
        return torch.zeros(())

    monkeypatch.setattr(model.model, "forward", record)
    model(images)
    assert torch.equal(seen["seq"], patchify(images * 2 - 1, (4, 4)))
    assert seen["noised_seq"] is None

    monkeypatch.setattr(model.model, "sample", lambda *args, **kwargs: seen["seq"])
    torch.testing.assert_close(model.sample(2), images)


@models
def test_training_noise_reaches_the_transformer_only_while_training(model_class, monkeypatch):
    model = small_model(model_class, train_max_noise=0.5)
    images = torch.rand(4000, 3, 8, 8)
    seen = {}

    def record(seq, noised_seq, **kwargs):
        seen.update(seq=seq, noised_seq=noised_seq)
        return torch.zeros(())

    monkeypatch.setattr(model.model, "forward", record)
    model.eval()(images)
    assert seen["noised_seq"] is None
    model.train()(images)
    assert torch.equal(seen["seq"], patchify(images * 2 - 1, (4, 4)))
    # noised = (1 - share) tokens + share · noise, the share even from 0 to 0.5 and one for each
    # image
    share = 1 - (seen["noised_seq"] * seen["seq"]).sum(dim=(1, 2)) / seen["seq"].square().sum(
        dim=(1, 2)
    )
    assert share.mean() == pytest.approx(
        0.25, abs=5 * 0.5 / math.sqrt(12 * 4000) + 5 * 0.1 / math.sqrt(4000)
    )
    assert share.quantile(0.95) > 0.4
    assert share.quantile(0.05) < 0.1


@models
def test_drawn_tokens_of_images_are_clamped_by_default(model_class):
    model = small_model(model_class)
    assert model.model.head.clamp_during_sampling is True
    off = SMALL | {model.model.head_argument(): dict(clamp_during_sampling=False, sigma_data=0.7)}
    head = small_model(model_class, model=off).model.head
    assert head.clamp_during_sampling is False
    assert head.sigma_data == 0.7


@models
def test_images_take_few_steps_of_the_default_solver(model_class):
    name = small_model(model_class).model.head_argument()

    def steps(**head_kwargs):
        head = small_model(model_class, model=SMALL | {name: head_kwargs}).model.head
        return head.num_evaluations(), head.num_evaluations(solver="dpmpp_2m")

    own = small_model(model_class).model.head.NUM_SAMPLE_STEPS
    few = own["dpmpp_2m"]
    assert few < own["euler"]
    assert steps() == steps(solver="dpmpp_2m") == (few, few)
    assert steps(num_sample_steps=7) == (7, 7)
    assert steps(solver="euler") == (own["euler"], few)
    assert steps(S_churn=1.0) == (2 * own["heun"] - 2, few)


@models
def test_positions_are_those_of_rows_and_columns(model_class):
    model = small_model(model_class, image_size=(8, 12), patch_size=2)
    assert [len(table) for table in model.model.backbone.positions.tables] == [4, 6]


@models
def test_same_seed_same_images(model_class):
    model = small_model(model_class)
    first, second = (model.sample(2, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


@models
def test_a_stream_shows_the_growing_images(model_class):
    model = small_model(model_class, image_size=(8, 12))
    sample = model.sample(2, generator=torch.Generator().manual_seed(1))
    pictures = list(model.stream(2, generator=torch.Generator().manual_seed(1)))
    assert len(pictures) == 6
    assert torch.equal(pictures[-1], sample)
    # after four patches: a row of three and the first of the next, and grey
    assert torch.equal(pictures[3][:, :, :4], sample[:, :, :4])
    assert torch.equal(pictures[3][:, :, 4:, :4], sample[:, :, 4:, :4])
    assert (pictures[3][:, :, 4:, 4:] == 0.5).all()
    for draw in (model.sample, model.stream):
        for name, value in dict(prompt=torch.zeros(2, 1, 48), seq_len=2).items():
            with pytest.raises(TypeError, match=name):
                draw(2, **{name: value})


CONDITIONS = dict(
    labels=torch.tensor([0, 2, 1]), cond=torch.randn(3, 4, 5), cond_mask=torch.ones(3, 4).bool()
)


@models
def test_labels_and_vectors_reach_the_sequence_model(model_class, monkeypatch):
    model = small_model(model_class, num_classes=3, dim_cond=5)
    seen = {}

    def record(seq, **kwargs):
        seen.update(kwargs)
        return torch.zeros(())

    monkeypatch.setattr(model.model, "forward", record)
    model(torch.rand(3, 3, 8, 8), **CONDITIONS)
    assert all(seen[name] is given for name, given in CONDITIONS.items())


@models
def test_images_of_labels_and_vectors(model_class):
    model = stir(small_model(model_class, num_classes=3, dim_cond=5))
    model(torch.rand(3, 3, 8, 8), **CONDITIONS).backward()

    def sample(**kwargs):
        return model.sample(generator=torch.Generator().manual_seed(0), **kwargs)

    plain = sample(**CONDITIONS)
    assert plain.shape == (3, 3, 8, 8)
    assert torch.equal(sample(**CONDITIONS, guidance_scale=1.0), plain)
    assert not torch.allclose(sample(**CONDITIONS, guidance_scale=3.0), plain)
    assert not torch.allclose(sample(**(CONDITIONS | dict(labels=torch.tensor([1, 0, 2])))), plain)
    *_, last = model.stream(**CONDITIONS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last, plain)
    with pytest.raises(ValueError, match="labels are missing"):
        model(torch.rand(3, 3, 8, 8), cond=CONDITIONS["cond"])


@models
def test_one_scale_for_each_image(model_class):
    model = stir(small_model(model_class, num_classes=3))

    def sample(scale):
        return model.sample(
            4, labels=1, guidance_scale=scale, generator=torch.Generator().manual_seed(0)
        )

    together = sample([0.0, 1.0, 1.0, 5.0])
    for i, scale in enumerate((0.0, 1.0, 1.0, 5.0)):
        torch.testing.assert_close(together[i], sample(scale)[i], rtol=1e-3, atol=1e-3)


@models
def test_image_models_can_draw_with_context_guidance(model_class):
    model = stir(small_model(model_class))
    assert model.model.context_drop_prob == 0.1

    def sample(**kwargs):
        return model.sample(2, generator=torch.Generator().manual_seed(0), **kwargs)

    assert torch.equal(sample(), sample(context_guidance=1.0))
    assert not torch.allclose(sample(), sample(context_guidance=2.0), atol=1e-2)
    without = small_model(model_class, model=SMALL | dict(context_drop_prob=0.0))
    assert without.model.context_drop_prob == 0
    with pytest.raises(ValueError, match="context_guidance other than 1 needs"):
        without.sample(context_guidance=2.0)


@models
def test_models_saved_before_there_was_context_guidance(model_class, tmp_path):
    model = small_model(model_class, model=SMALL | dict(context_drop_prob=0.0))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["context_drop_prob"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.model.context_drop_prob == 0
    assert loaded.config == model.config


@models
def test_a_conditional_model_saves_and_loads(model_class, tmp_path):
    model = small_model(
        model_class, num_classes=3, dim_cond=5, model=SMALL | dict(num_cond_tokens=2)
    )
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert (loaded.num_classes, loaded.dim_cond) == (3, 5)
    assert len(loaded.model.conditioning.label_embeds[0]) == 2


@models
@pytest.mark.parametrize("keep_rows", [0, 4, 8])
def test_completions_keep_the_given_rows_exactly(model_class, keep_rows):
    model = stir(small_model(model_class, image_size=(8, 12)))
    images = torch.rand(2, 3, 8, 12) ** 3  # small values, which to tokens and back would change
    completed = model.complete(
        images, keep_rows, num_completions=3, generator=torch.Generator().manual_seed(0)
    )
    assert completed.shape == (6, 3, 8, 12)
    kept = images.repeat_interleave(3, dim=0)[:, :, :keep_rows]
    assert torch.equal(completed[:, :, :keep_rows], kept)
    assert completed.min() >= 0
    assert completed.max() <= 1
    if keep_rows < 8:
        drawn = completed[:, :, keep_rows:]
        assert (drawn[0] - drawn[1]).abs().max() > 1e-3
        # what is drawn is what the sequence model draws after the kept patches
        prompt = patchify(images * 2 - 1, (4, 4))[:, : keep_rows // 4 * 3]
        tokens = model.model.sample(6, prompt, generator=torch.Generator().manual_seed(0))
        rest = (unpatchify(tokens, (4, 4), (8, 12)) / 2 + 0.5).clamp(0, 1)[:, :, keep_rows:]
        torch.testing.assert_close(drawn, rest)


@models
def test_completions_can_be_seen_growing(model_class):
    model = small_model(model_class)
    image, own = torch.rand(1, 3, 8, 8), dict(num_completions=2)
    pictures = list(
        model.stream_complete(image, 4, generator=torch.Generator().manual_seed(0), **own)
    )
    assert len(pictures) == 2
    assert torch.equal(
        pictures[-1], model.complete(image, 4, generator=torch.Generator().manual_seed(0), **own)
    )
    for picture in pictures:
        assert torch.equal(picture[:, :, :4], image[:, :, :4].expand(2, -1, -1, -1))
    assert (pictures[0][:, :, 4:, 4:] == 0.5).all()
    assert not (pictures[0][:, :, 4:, :4] == 0.5).any()


@models
def test_completions_follow_the_kept_rows_and_labels(model_class, monkeypatch):
    model = stir(small_model(model_class, num_classes=3))
    image = torch.rand(1, 3, 8, 8)

    def complete(image, **kwargs):
        return model.complete(image, 4, generator=torch.Generator().manual_seed(0), **kwargs)[
            :, :, 4:
        ]

    plain = complete(image, labels=0)
    assert (complete(1 - image, labels=0) - plain).abs().max() > 1e-3
    assert (complete(image, labels=1) - plain).abs().max() > 1e-3
    assert (complete(image, labels=0, guidance_scale=4.0) - plain).abs().max() > 1e-3
    # one image with several labels
    for num_completions in (1, 2):
        completed = model.complete(image, 4, labels=[0, 1, 2], num_completions=num_completions)
        assert torch.equal(
            completed[:, :, :4], image[:, :, :4].expand(3 * num_completions, -1, -1, -1)
        )
    with pytest.raises(
        ValueError, match="images must be one or 3, as many as labels or vectors, got 2"
    ):
        model.complete(image.expand(2, -1, -1, -1), 4, labels=[0, 1, 2])
    assert not model.complete(image.clone().requires_grad_(), 4, labels=0).requires_grad
    # the rows are read once for all completions
    seen = record_steps(monkeypatch, model.model.backbone)
    complete(image, labels=0, num_completions=5)
    assert seen == [1, 5]


@models
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(keep_rows=3),
            ValueError,
            "keep_rows must be a multiple of the patch height 4 from 0 to 8, got 3",
        ),
        (
            dict(keep_rows=12),
            ValueError,
            "keep_rows must be a multiple of the patch height 4 from 0 to 8, got 12",
        ),
        (dict(keep_rows=-4), ValueError, "keep_rows must be"),
        (dict(keep_rows=4.0), ValueError, "keep_rows must be"),
        (
            dict(num_completions=0),
            ValueError,
            "num_completions must be a whole number of at least 1, got 0",
        ),
        (
            dict(images=torch.zeros(1, 1, 8, 8)),
            ValueError,
            r"images must be of shape \(b 3 8 8\), got \(1, 1, 8, 8\)",
        ),
        (dict(images=torch.zeros(1, 3, 8, 8).byte()), TypeError, "images must be real numbers in"),
        (dict(prompt=torch.zeros(1, 1, 48)), TypeError, "prompt"),
        (dict(seq_len=2), TypeError, "seq_len"),
        (dict(labels=0), ValueError, "labels are given to a model without classes"),
    ],
)
def test_bad_completions(model_class, arguments, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class).complete(
            **(dict(images=torch.zeros(1, 3, 8, 8), keep_rows=4) | arguments)
        )


@models
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (
            dict(model=SMALL | dict(num_classes=4)),
            "model must not hold 'num_classes': it is an argument of the image model itself",
        ),
        (dict(patch_size=3), "patch_size 3 does not divide image_size 8"),
        (dict(image_size=(8, 9)), r"patch_size 4 does not divide image_size \(8, 9\)"),
        (dict(image_size=0), "image_size must be a whole number of at least 1"),
        (dict(image_size=(8, 8, 8)), r"or \(height, width\), got \(8, 8, 8\)"),
        (dict(channels=0), "channels must be a whole number of at least 1, got 0"),
        (dict(train_max_noise=1.0), "train_max_noise must be at least 0 and below 1, got 1.0"),
        (dict(train_max_noise=-0.1), "train_max_noise must be at least 0 and below 1, got -0.1"),
        (dict(model=SMALL | dict(max_seq_len=4)), "model must not hold 'max_seq_len'"),
        (dict(model=SMALL | dict(dim_input=4)), "model must not hold 'dim_input'"),
    ],
)
def test_bad_arguments(model_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_model(model_class, **kwargs)


@models
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            torch.zeros(2, 1, 8, 8),
            ValueError,
            r"images must be of shape \(b 3 8 8\), got \(2, 1, 8, 8\)",
        ),
        (torch.zeros(2, 3, 8, 4), ValueError, r"got \(2, 3, 8, 4\)"),
        (torch.zeros(3, 8, 8), ValueError, r"got \(3, 8, 8\)"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            TypeError,
            r"got torch.uint8: divide 8-bit values by 255",
        ),
    ],
)
def test_bad_images(model_class, images, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class)(images)


@models
def test_the_probabilities_of_all_8_bit_values_add_up_to_1(model_class, monkeypatch):
    # one value, by the ideal head of a Gaussian: each value has the probability of what is rounded
    # to it
    def posterior_mean(noised, sigma, cond):
        return (std**2 * noised + sigma**2 * mean) / (std**2 + sigma**2)

    mean, std = 0.1, 0.3
    model = small_model(model_class, image_size=1, patch_size=1, channels=1).double()
    model.model.head = ideal_head(type(model.model.head), 1, posterior_mean)
    monkeypatch.setattr(model.model, "conditions", lambda seq, **_: torch.zeros_like(seq))
    images = torch.arange(256).view(256, 1, 1, 1) / 255
    log_probs = model.log_prob(images.double(), solver="rk4", num_steps=32)
    assert log_probs.shape == (256, 1)
    assert log_probs.exp().sum() == pytest.approx(1, abs=0.005)
    edges = torch.distributions.Normal(mean, std).cdf((torch.arange(257) - 0.5) / 255 * 2 - 1)
    expected = (edges[1:] - edges[:-1]).log()
    assert (log_probs.squeeze() - expected)[64:192].abs().max() < 0.05
    bits = model.bits_per_dim(images.double(), solver="rk4", num_steps=32)
    # other noise within the intervals, over which the log-density changes by so much at the most
    steepest = (1 + mean) / std**2 * 2 / 255 / math.log(2)
    assert (bits + log_probs.squeeze() / math.log(2)).abs().max() < steepest


@models
def test_bits_per_dim_of_images_that_the_model_finds_all_alike(model_class, monkeypatch):
    # even density on [-1 - 1 / 255, 1 + 1 / 255]: 8 bits whatever the image; and the tokens stay in
    # there
    model, seen = small_model(model_class), []

    def even(seq, **kwargs):
        seen.append(seq)
        return torch.full(seq.shape[:2], -math.log(2 * 256 / 255) * seq.shape[-1])

    monkeypatch.setattr(model.model, "log_prob", even)
    images = torch.randint(256, (5, 3, 8, 8)) / 255
    torch.testing.assert_close(model.bits_per_dim(images), torch.full((5,), 8.0))
    noise = seen[0] - patchify(images * 2 - 1, (4, 4))
    assert noise.abs().max() <= 1 / 255 + 1e-6
    assert noise.std() == pytest.approx(2 / 255 / math.sqrt(12), rel=0.1)
    # values between those of 8 bits are rounded first
    torch.manual_seed(0)
    model.bits_per_dim(images)
    torch.manual_seed(0)
    model.bits_per_dim((images + 0.4 / 255 * (1 - 2 * images)).clamp(0, 1))
    assert torch.equal(seen[1], seen[2])


@models
def test_likelihoods_follow_from_images_labels_and_generator(model_class):
    model = small_model(model_class, num_classes=3).train()
    images, labels = torch.randint(256, (4, 3, 8, 8)) / 255, torch.tensor([0, 1, 2, 0])
    options = dict(solver="midpoint", num_steps=4)

    def log_prob(labels=labels, seed=0):
        return model.log_prob(
            images, labels=labels, generator=torch.Generator().manual_seed(seed), **options
        )

    log_probs = log_prob()
    assert log_probs.shape == (4, 4)
    assert torch.equal(log_prob(), log_probs)
    assert not torch.equal(log_prob(seed=1), log_probs)
    assert not torch.equal(log_prob(labels=labels.flip(0)), log_probs)
    bits = model.bits_per_dim(
        images, labels=labels, generator=torch.Generator().manual_seed(0), **options
    )
    torch.testing.assert_close(bits, -log_probs.sum(dim=1) / (3 * 8 * 8 * math.log(2)))
    with pytest.raises(ValueError, match=r"images must have values in \[0, 1\], got -0.5 to 0.5"):
        model.bits_per_dim(torch.linspace(-0.5, 0.5, 192).view(1, 3, 8, 8), labels=labels[:1])
    with pytest.raises(ValueError, match="images must be at least one, got none"):
        model.bits_per_dim(images[:0], labels=labels[:0])
    with pytest.raises(TypeError, match="divide 8-bit values by 255"):
        model.bits_per_dim(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_one_image_serves_several_scales():
    sizes = dict(dim=16, depth=1, heads=1, dim_head=8, mlp_depth=1, mlp_width=16)
    model = ImageAutoregressiveFlow(
        image_size=8, patch_size=4, channels=1, num_classes=3, model=sizes
    )
    images = torch.rand(1, 1, 8, 8)
    assert len(model.complete(images, 4, labels=[1], guidance_scale=[0.0, 2.0])) == 2
    assert len(model.complete(images, 4, labels=[0, 1, 2], num_completions=2)) == 6
