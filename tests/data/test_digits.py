from autoregressive_diffusion_pytorch.data.digits import digits


def test_digits():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert labels.shape == (1797,)
    assert labels.bincount().min() > 170
    assert images.min() == 0
    assert images.max() == 1
