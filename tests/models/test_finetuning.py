"""A trained model with other arguments."""

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    AutoregressiveFlow,
    GenerationSettings,
    ImageAutoregressive,
    ImageAutoregressiveFlow,
    ImageMaskedAutoregressive,
    Trainer,
)
from autoregressive_diffusion_pytorch.models.finetuning import finetuned, freeze_parts, interpolated
from autoregressive_diffusion_pytorch.models.presets import load_pretrained

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
IMAGE_KINDS = {
    "raster": (ImageAutoregressiveFlow, {}),
    "random": (ImageAutoregressive, dict(head="diffusion", order="random")),
    "masked": (ImageMaskedAutoregressive, dict(head="flow")),
}
kinds = pytest.mark.parametrize("kind", IMAGE_KINDS)


def trained_images(kind="raster", image_size=8, **kwargs):
    cls, own = IMAGE_KINDS[kind]
    sizes = dict(image_size=image_size, patch_size=2, channels=1)
    model = stir(cls(model=SIZES | own, **sizes, **kwargs))
    model.measure(torch.rand(8, 1, 8, 8) if image_size == 8 else torch.rand(8, 1, 4, 6))
    return model


def loss(model, *args, **kwargs):
    torch.manual_seed(1)
    return model(*args, **kwargs, loss_reduction="none")


@kinds
def test_unchanged_it_is_the_same_model(kind):
    model = trained_images(kind, num_classes=3)
    model.generation = GenerationSettings(temperature=0.9, guidance_scale=2.0)
    new = finetuned(model)
    assert type(new) is type(model)
    assert new.config == model.config
    assert new.generation == model.generation
    given = dict(images=torch.rand(4, 1, 8, 8), labels=torch.tensor([0, 1, 2, 2]))
    assert torch.equal(loss(new, **given), loss(model, **given))
    for name, weight in model.state_dict().items():
        assert torch.equal(new.state_dict()[name], weight)
        assert new.state_dict()[name].data_ptr() != weight.data_ptr()


@kinds
def test_old_classes_are_as_they_were(kind):
    model = trained_images(kind, num_classes=3).eval()
    new = finetuned(model, num_classes=5).eval()
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 2])
    assert torch.equal(loss(new, images, labels=labels), loss(model, images, labels=labels))

    # under other numbers, with the new ones between them
    new = finetuned(model, old_labels=[None, 2, 0, None, 1]).eval()
    moved = torch.tensor([2, 4, 1, 1])
    assert new.num_classes == 5
    assert torch.equal(loss(new, images, labels=moved), loss(model, images, labels=labels))

    # a new class starts from the mean of the old ones
    embeds, old = (one.model.conditioning.label_embeds for one in (new, model))
    torch.testing.assert_close(embeds[0], old[:3].mean(dim=0))
    assert torch.equal(embeds[-1], old[-1])


def test_classes_for_a_model_that_had_none_and_the_other_way_round():
    model = trained_images()
    new = finetuned(model, num_classes=3, model=dict(num_cond_tokens=4, cond_drop_prob=0.2))
    assert new.model.conditioning.cond_drop_prob == 0.2
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert not torch.equal(loss(new, images, labels=labels)[0], loss(new, images, labels=labels)[1])
    new.generation = GenerationSettings(guidance_scale=2.0, temperature=0.9)
    without = finetuned(new, num_classes=None)
    assert without.generation == GenerationSettings(temperature=0.9)
    assert torch.equal(loss(without.eval(), images), loss(model.eval(), images))


@kinds
def test_an_image_of_another_size(kind):
    model = trained_images(kind, image_size=(4, 6), num_classes=2)
    new = finetuned(model, image_size=(4, 12))
    assert new.model.max_seq_len == 12
    for name, weight in model.state_dict().items():
        adapted = new.state_dict()[name]
        if name.endswith("tables.1"):
            torch.testing.assert_close(adapted[[0, 5]], weight[[0, 2]])  # the edges stay
            torch.testing.assert_close(adapted[2], weight[0].lerp(weight[1], 0.75))
        else:
            assert torch.equal(adapted, weight), name
    new(torch.rand(2, 1, 4, 12), labels=torch.tensor([0, 1])).backward()
    assert new.sample(labels=[0], num_steps=1).shape == (1, 1, 4, 12)


def test_positions_are_interpolated_at_the_middles_of_their_places():
    table = torch.tensor([[0.0], [2.0]])
    assert interpolated(table, torch.empty(4, 1)).squeeze(1).tolist() == [0, 0.5, 1.5, 2]
    assert interpolated(table, torch.empty(1, 1)).item() == 1
    assert torch.equal(interpolated(table, table), table)


@pytest.mark.parametrize("axial", [False, True])
def test_a_longer_sequence_keeps_its_first_positions(axial):
    lengths = ((3, 2), (5, 2)) if axial else (6, 10)
    model = stir(Autoregressive(max_seq_len=lengths[0], dim_input=3, head="flow", **SIZES))
    model.measure(torch.randn(8, 6, 3))
    seq = torch.randn(2, 10, 3)
    for _ in range(2):  # and a shorter one the first
        new = finetuned(model, max_seq_len=lengths[1])
        assert new.max_seq_len == 10
        torch.testing.assert_close(loss(new, seq[:, :6]), loss(model, seq[:, :6]))
        assert new.sample(batch_size=1, num_steps=1).shape == (1, 10, 3)
        model, new = finetuned(new, max_seq_len=lengths[0]), new
        assert model.max_seq_len == 6


def test_vectors_ends_and_context_dropout_for_a_model_that_had_none():
    model = stir(AutoregressiveFlow(max_seq_len=5, dim_input=3, **SIZES))
    new = finetuned(model, dim_cond=4, context_drop_prob=0.1, predict_end=True)
    new(torch.randn(2, 5, 3), cond=torch.randn(2, 4), lens=[5, 3]).backward()
    assert new.no_context.tables[0].grad is not None
    assert new.end_head.proj.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(patch_size=4), "patch_size must stay 2, for which the weights were trained; got 4"),
        (dict(channels=3), "channels must stay 1"),
        (dict(model=dict(dim=32)), "dim must stay 16"),
        (dict(model=dict(order="random")), "order must stay 'raster'"),
        (dict(model=dict(flow_kwargs=dict(model_output_clean=False))), "model_output_clean must"),
        (dict(model=dict(num_cond_tokens=2)), "num_cond_tokens must stay 4"),
        (dict(num_classes=2), "num_classes = 2 leaves out classes of the 3"),
        (dict(old_labels=[0, 3]), "old_labels must be None or labels of the 3 classes"),
        (dict(old_labels=[0], num_classes=2), "old_labels must be one per class, 2, got 1"),
        (dict(num_classes=4, freeze=["conditioning"]), "freeze must not name 'conditioning'"),
        (dict(freeze=["spine"]), "freeze must name parts among .*backbone, .*; got 'spine'"),
    ],
)
def test_what_cannot_be_taken_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        finetuned(trained_images(num_classes=3), **arguments)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="did you mean 'image_size'"):
        finetuned(trained_images(), image_sizes=4)


def test_another_width_of_vectors_cannot_be_taken():
    model = trained_images(dim_cond=4)
    with pytest.raises(ValueError, match=r"proj_cond.weight cannot be taken: .*\(16, 4\)"):
        finetuned(model, dim_cond=6)


def test_frozen_parts_do_not_move(tmp_path):
    model = trained_images(num_classes=3).model
    new = finetuned(model, freeze=["backbone", "start_token"])
    dataset = [dict(seq=torch.rand(16, 4), labels=torch.tensor(i % 3)) for i in range(8)]
    folders = dict(checkpoints_folder=tmp_path / "checkpoints", log_with=None)
    options = dict(num_train_steps=2, batch_size=4, adam_kwargs=dict(weight_decay=0.5))
    trainer = Trainer(new, dataset=dataset, **options, **folders)
    trained = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert trained == sum(parameter.requires_grad for parameter in new.parameters())
    trainer()
    frozen = ("backbone.", "start_token")
    for weights in (new.state_dict(), trainer.ema.ema_model.state_dict()):
        for name, weight in model.named_parameters():
            stays = name.startswith(frozen)
            assert torch.equal(weights[name], weight) == stays, name


def test_something_must_be_left_to_train():
    model = trained_images()
    parts = ["backbone", "proj_in", "no_context", "head", "start_token", "conditioning"]
    with pytest.raises(ValueError, match="freeze leaves nothing to train"):
        freeze_parts(model, parts)


@kinds
def test_a_saved_model_is_loaded_by_its_folder(kind, tmp_path):
    model = trained_images(kind)
    model.save_pretrained(tmp_path / "images")
    assert type(load_pretrained(tmp_path / "images")) is type(model)
    model.model.save_pretrained(tmp_path / "sequences")
    assert type(load_pretrained(tmp_path / "sequences")) is type(model.model)
