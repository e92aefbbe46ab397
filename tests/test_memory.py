"""nfx.memory: bytes counted by hand, and with and without content."""

import pytest
import torch
from tiny_diffusion import stable_diffusion
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nfx.memory import CONTEXT, MARGIN, LiveBytes, estimate, peak_of_training
from nfx.profile import load_profile


def test_storages_count_once_and_until_they_are_freed():
    with LiveBytes() as count:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a[:10]
        c = a + 1
        assert count.now == 8000
        del c
        assert count.now == 4000
        del a
        assert count.now == 4000  # b looks into it
        del b
    assert (count.now, count.peak) == (0, 8000)


def linear_step(depth=4, width=256, batch=512):
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
    return model, lambda: model(torch.randn(batch, width)).square().mean()


@pytest.mark.parametrize("passes", [1, 3])
def test_a_linear_networks_step_is_what_can_be_counted_by_hand(passes):
    weights, activation = 4 * 256 * 256 * 4, 512 * 256 * 4
    peak = peak_of_training(*linear_step(), passes, "no")
    # Weights and Adam's two moments stay; an input of each layer, the last output and some of its copies live at once,
    # or, later, all gradients and the buffers of the step.
    stays = 3 * weights + (weights if passes > 1 else 0)
    assert stays + 5 * activation <= peak <= stays + weights + 10 * activation


def test_tensors_without_content_count_the_same():
    real = peak_of_training(*linear_step(), 1, "no")
    with FakeTensorMode():
        assert peak_of_training(*linear_step(), 1, "no") == real


def test_frozen_weights_have_no_gradients_and_moments():
    model, loss = linear_step(batch=1)
    trained = peak_of_training(model, loss, 1, "no")
    model[:3].requires_grad_(False)
    assert peak_of_training(model, loss, 1, "no") < 0.5 * trained


@pytest.fixture(scope="module")
def estimates(tmp_path_factory):
    folder = stable_diffusion(tmp_path_factory.mktemp("sd"))
    demo = load_profile("demo")
    models = demo.models.model_copy(update={"stable_diffusion": str(folder)})
    encoder = demo.encoder.model_copy(update={"tokens": 5, "token_dim": 12})
    data = demo.data.model_copy(update={"frame_size": 64})

    def with_training(**changes):
        training = demo.training.model_copy(update=changes)
        return demo.model_copy(
            update={"name": "unprepared", "models": models, "encoder": encoder, "data": data, "training": training}
        )

    return {
        "plain": estimate(with_training()),
        "half": estimate(with_training(precision="bf16")),
        "checkpointed": estimate(with_training(gradient_checkpointing=True)),
        "passes": estimate(with_training(accumulate=4)),
    }


def test_every_training_and_decoding_is_estimated(estimates):
    assert list(estimates["plain"]) == ["pretraining", "encoder", "stage one", "stage two", "decoding"]
    assert all(CONTEXT < value < 10e9 for value in estimates["plain"].values())


def test_what_is_meant_to_save_memory_does(estimates):
    plain = estimates["plain"]
    for name in ("pretraining", "encoder", "stage one", "stage two"):
        assert estimates["checkpointed"][name] < plain[name]
        assert estimates["half"][name] < plain[name]
    for name in ("stage one", "stage two"):
        assert (estimates["passes"][name] - CONTEXT) < 0.6 * (plain[name] - CONTEXT)
    for name in ("pretraining", "encoder", "decoding"):  # contrastive losses take one pass
        assert estimates["passes"][name] == plain[name]
    assert MARGIN > 1
