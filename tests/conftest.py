import pytest
import torch

# the networks here are so small that a second thread costs more than it gives
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
