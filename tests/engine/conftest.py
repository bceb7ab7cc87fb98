import pytest
import torch

from tests.engine.tiny import make_tiny_model

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random model's folder, shared by all tests: do not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))
