"""A trained model's transformer with another head."""

import copy

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    AutoregressiveDiffusion,
    AutoregressiveFlow,
    AutoregressiveFlowMap,
    FlowMap,
    GenerationSettings,
    Head,
    ImageAutoregressive,
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveEnergy,
    ImageAutoregressiveFlow,
    ImageAutoregressiveFlowMap,
    ImageMaskedAutoregressive,
)
from autoregressive_diffusion_pytorch.models.distillation import distilled

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def images_teacher(cls, **kwargs):
    return stir(cls(model=SIZES, image_size=4, patch_size=2, channels=1, **kwargs))


@pytest.mark.parametrize("order", ["random", "masked"])
def test_a_student_draws_in_the_order_of_its_teacher(order):
    own = (
        dict(SIZES, head="flow", order="random") if order == "random" else dict(SIZES, head="flow")
    )
    cls = ImageAutoregressive if order == "random" else ImageMaskedAutoregressive
    teacher = stir(cls(model=own, image_size=4, patch_size=2, channels=1))
    student = distilled(teacher, "flow_map")
    assert isinstance(student.head, FlowMap)
    assert student.model.order == order
    student(torch.rand(4, 1, 4, 4)).backward()
    mask = torch.tensor([[1, 0], [0, 0]]).bool().repeat_interleave(2, 0).repeat_interleave(2, 1)
    drawn = student.eval().fill(torch.full((2, 1, 4, 4), 0.3), mask, num_steps=1)
    assert (drawn[..., ~mask] == 0.3).all()


@pytest.mark.parametrize("teacher_class", [ImageAutoregressiveFlow, ImageAutoregressiveDiffusion])
@pytest.mark.parametrize(
    ("head", "student_class"),
    [("flow_map", ImageAutoregressiveFlowMap), ("energy", ImageAutoregressiveEnergy)],
)
def test_a_student_of_images_trains_its_head_alone(teacher_class, head, student_class, tmp_path):
    teacher = images_teacher(teacher_class, num_classes=3)
    teacher.generation = GenerationSettings(temperature=0.9)
    before = copy.deepcopy(teacher.state_dict())
    student = distilled(teacher, head)
    assert type(student) is student_class
    assert student.generation == teacher.generation

    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    optimizer = torch.optim.Adam(p for p in student.parameters() if p.requires_grad)
    student(images, labels=labels).backward()
    optimizer.step()
    for name, weight in teacher.state_dict().items():
        torch.testing.assert_close(weight, before[name], equal_nan=True)
        if not name.startswith("model.head."):
            assert torch.equal(weight, student.state_dict()[name])
    assert all(p.grad is not None for p in student.head.parameters())
    # the head reads what its teacher reads
    teacher.eval(), student.eval()
    tokens = torch.randn(3, 4, 4)
    conditions = (m.model.conditions(tokens, labels=torch.arange(3)) for m in (teacher, student))
    torch.testing.assert_close(*conditions, rtol=1e-4, atol=1e-5)

    student.save_pretrained(tmp_path)
    loaded = student_class.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == student.state_dict().keys()
    draw = dict(labels=[1], temperature=0.0)
    assert torch.equal(loaded.sample(**draw), student.sample(**draw))


@pytest.mark.parametrize("general", [False, True])
def test_a_student_of_sequences(general):
    kwargs = SIZES | dict(max_seq_len=5, dim_input=3)
    teacher = Autoregressive(head="flow", **kwargs) if general else AutoregressiveFlow(**kwargs)
    student = distilled(teacher, "flow_map", dict(num_noise_draws=4))
    assert type(student) is AutoregressiveFlowMap
    assert student.head.num_noise_draws == 4
    student(torch.randn(2, 5, 3)).backward()
    assert student.start_token.grad is None
    assert student.log_prob(torch.randn(2, 5, 3)).shape == (2, 5)


class Copied(Head):
    """A head of one's own that takes over what its teacher knows."""

    def __init__(self, dim_token, dim_z, width, depth):
        super().__init__(dim_token, dim_z)
        self.bias = torch.nn.Parameter(torch.zeros(dim_token))

    def imitate(self, teacher):
        self.bias.data.fill_(teacher.scale)

    def forward(self, tokens, z):
        return (tokens - self.bias).square().mean(dim=-1)

    def sample(self, z, *, guidance=(), temperature=1.0, generator=None):
        return self.bias.expand(*z.shape[:-1], -1)


def test_a_head_of_one_s_own():
    teacher = AutoregressiveDiffusion(
        max_seq_len=5, dim_input=3, diffusion_kwargs=dict(sigma_data=0.3), **SIZES
    )
    student = distilled(teacher, Copied)
    assert type(student) is Autoregressive
    assert student.sample(batch_size=1).unique().item() == pytest.approx(0.3)


def test_the_head_s_teacher_is_no_part_of_the_model():
    teacher = images_teacher(ImageAutoregressiveFlow)
    student = distilled(teacher, "flow_map")
    plain = ImageAutoregressiveFlowMap(model=SIZES, image_size=4, patch_size=2, channels=1)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(student.head, FlowMap)
    assert len(list(student.parameters())) == len(list(plain.parameters()))
    average = copy.deepcopy(student)  # as a trainer makes it
    assert average(torch.rand(2, 1, 4, 4)).isfinite()
