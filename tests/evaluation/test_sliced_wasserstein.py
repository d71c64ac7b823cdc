import math

import pytest
import torch
from torch.nn import functional as F

from autoregressive_diffusion_pytorch.evaluation.sliced_wasserstein import (
    PATCH_SIZE,
    _enlarge,
    laplacian_pyramid,
    patches_per_image,
    pyramid_patches,
    sliced_wasserstein,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_images(count, seed=0, channels=1, size=8):
    return 0.5 + 0.1 * torch.randn(count, channels, size, size, generator=seeded(seed))


def smooth_images(count, seed=0, size=16):
    """Images of detail at several scales."""
    generator = seeded(seed)
    scales = [torch.rand(count, 3, side, side, generator=generator) for side in (2, 4, 8, size)]
    return sum(F.interpolate(image, size=(size, size), mode="bilinear") for image in scales) / len(
        scales
    )


def distance(real, other, seed=0):
    real, other = (
        pyramid_patches(images, patches_per_image(len(images)), seeded())
        for images in (real, other)
    )
    by_level = sliced_wasserstein(real, other, seed)
    return sum(by_level) / len(by_level)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((8, 8), [(8, 8)]),
        ((15, 40), [(15, 40)]),
        ((32, 32), [(32, 32), (16, 16), (8, 8)]),
        ((33, 17), [(33, 17), (17, 9)]),
        ((32, 64), [(32, 64), (16, 32), (8, 16)]),
    ],
)
def test_a_pyramid_adds_up_to_the_image(size, sizes):
    images = torch.rand(2, 3, *size)
    levels = laplacian_pyramid(images)
    assert [level.shape for level in levels] == [(2, 3, *level) for level in sizes]
    whole = levels[-1]
    for level in levels[-2::-1]:
        whole = level + _enlarge(whole, level.shape[-2:])
    torch.testing.assert_close(whole, images)


def test_each_level_shows_one_scale():
    flat = laplacian_pyramid(torch.full((1, 2, 32, 32), 0.7))
    for level in flat[:-1]:
        torch.testing.assert_close(level, torch.zeros_like(level), rtol=0, atol=1e-6)
    torch.testing.assert_close(flat[-1], torch.full((1, 2, 8, 8), 0.7))
    # even brightening has no detail but at the borders, a board of single pixels nothing else
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    assert laplacian_pyramid(ramp)[0][..., 4:-4, 4:-4].abs().max() < 1e-6
    board = (torch.arange(32).view(32, 1) + torch.arange(32)) % 2 - 0.5
    fine, middle, coarse = laplacian_pyramid(board.view(1, 1, 32, 32))
    torch.testing.assert_close(fine, board.view(1, 1, 32, 32), rtol=0, atol=1e-6)
    assert max(middle.abs().max(), coarse.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("channels", "size", "expected"), [(1, (8, 8), [4]), (3, (16, 16), [9, 4]), (2, (4, 8), [5])]
)
def test_patches_come_from_all_images_and_each_place_once(channels, size, expected):
    images = torch.rand(3, channels, *size)
    patches = pyramid_patches(images, 9, seeded())
    side = min(PATCH_SIZE, *size)
    assert [part.shape for part in patches] == [
        (3 * places, channels, side * side) for places in expected
    ]
    of_one = patches[-1][: expected[-1]]
    assert len(of_one.flatten(1).unique(dim=0)) == len(of_one)
    # those of the coarsest level of a small image are parts of it
    if len(patches) == 1:
        windows = (
            images[0].unfold(1, side, 1).unfold(2, side, 1).flatten(1, 2).flatten(2).movedim(1, 0)
        )
        assert all((windows == patch).flatten(1).all(dim=1).any() for patch in of_one)


def test_the_distance_of_shifted_noise_in_closed_form():
    # along a direction u the patches move by shift · sum(u): by sqrt(d) · |cosine| for d entries,
    # whose mean is known
    real = noise_images(100)
    shift, entries = 0.05, PATCH_SIZE**2
    patches = [pyramid_patches(images, 4, seeded()) for images in (real, real + shift)]
    mean_cosine = math.exp(math.lgamma(entries / 2) - math.lgamma((entries + 1) / 2)) / math.sqrt(
        math.pi
    )
    expected = 1000 * shift / patches[0][0].std().item() * math.sqrt(entries) * mean_cosine
    found = torch.tensor([sliced_wasserstein(*patches, seed)[0] for seed in range(40)])
    assert found.mean().item() == pytest.approx(
        expected, abs=5 * found.std().item() / math.sqrt(40)
    )
    assert found.std() < 0.15 * expected
    # of another sample of the same noise it is nearly the same
    other = pyramid_patches(noise_images(100, seed=1) + shift, 4, seeded())
    assert sliced_wasserstein(patches[0], other)[0] == pytest.approx(
        sliced_wasserstein(*patches)[0], rel=0.2
    )


@pytest.mark.parametrize("contrast", [0.5, 2.0])
def test_the_distance_of_another_contrast_in_closed_form(contrast):
    # each quantile q moves by (contrast - 1) · q: on average by sqrt(2 / pi) standard deviations
    real = noise_images(2000)
    other = 0.5 + contrast * (real - 0.5)
    expected = 1000 * abs(contrast - 1) * math.sqrt(2 / math.pi)
    assert distance(real, other) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_images_are_at_distance_0(channels):
    images = noise_images(20, channels=channels, size=16)
    assert distance(images, images) == 0
    assert distance(images, images.flip(0)) == 0  # in any order
    other = noise_images(20, seed=1, channels=channels, size=16)
    assert distance(images, other) == distance(images, other)
    assert distance(images, other) != distance(images, other, seed=1)


def test_other_images_are_farther_than_the_floor():
    real, alike = smooth_images(200), smooth_images(200, seed=1)
    floor = distance(real, alike)

    def blurred(images, times):
        for _ in range(times):
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        return images

    noise = torch.randn(alike.shape, generator=seeded(2))
    changes = dict(
        contrast=lambda amount: 0.5 + (1 + 0.2 * amount) * (alike - 0.5),
        less_contrast=lambda amount: 0.5 + (1 - 0.2 * amount) * (alike - 0.5),
        blur=lambda amount: blurred(alike, amount),
        noise=lambda amount: alike + 0.05 * amount * noise,
    )
    for name, change in changes.items():
        little, much = (distance(real, change(amount)) for amount in (1, 3))
        assert floor < little < much, name


def test_a_change_is_seen_at_its_scale():
    real, alike = smooth_images(200), smooth_images(200, seed=1)
    board = (torch.arange(16).view(16, 1) + torch.arange(16)) % 2 - 0.5
    patches = [
        pyramid_patches(images, 8, seeded())
        for images in (real, alike, alike + 0.1 * board, alike + 0.1)
    ]
    floor, fine, shifted = (sliced_wasserstein(patches[0], other) for other in patches[1:])
    assert fine[0] > 2 * floor[0]
    assert fine[1] == pytest.approx(floor[1], rel=0.01)
    assert shifted[0] == pytest.approx(floor[0], rel=0.01)
    assert shifted[1] > 2 * floor[1]


def test_sets_of_unequal_size():
    real, other = (pyramid_patches(noise_images(500, seed), 2, seeded()) for seed in (0, 1))
    twice = [torch.cat((level, level)) for level in real]
    assert sliced_wasserstein(real, twice)[0] == 0
    assert sliced_wasserstein(twice, real)[0] < 1  # but for the standard deviation of twice as many
    floor = sliced_wasserstein(real, other)[0]
    for part in (700, 333):
        assert sliced_wasserstein(real, [level[:part] for level in other])[0] < 2 * floor
        assert sliced_wasserstein([level[:part] for level in real], other)[0] < 2 * floor


def test_a_channel_that_is_all_alike():
    images = noise_images(20, channels=2)
    images[:, 1] = 1.0
    assert distance(images, images) == 0
    assert math.isfinite(distance(images, noise_images(20, seed=1, channels=2)))
