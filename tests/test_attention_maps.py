from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nfx.attention import attention_maps, received, to_cortex, to_voxels, total, unit_rows
from nfx.attention.maps import critical_layers, patch_means, sphere
from nfx.flatmaps import CORTEX, LEFT


def softmax_maps(seed, clips=3, window=2, heads=4, patches=5, sharpness=1.0):
    x = np.exp(sharpness * np.random.default_rng(seed).standard_normal((clips, window, heads, patches, patches)))
    return x / x.sum(axis=-1, keepdims=True)


def test_rows_have_unit_norm_and_sum_to_the_spread():
    rows = unit_rows(softmax_maps(0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1)
    even, focused = np.full((1, 1, 1, 4, 4), 0.25), np.eye(4)[None, None, None]
    assert total(even) == pytest.approx(2)  # sqrt(4)
    assert total(focused) == pytest.approx(1)
    assert (total(softmax_maps(0, sharpness=3)) < total(softmax_maps(0, sharpness=0.5))).all()


def test_received_is_the_mean_over_queries_not_keys():
    attention = np.zeros((1, 1, 1, 3, 3))
    attention[..., 1] = 1  # every query looks at patch 1
    np.testing.assert_allclose(received(attention), [[0, 1, 0]])
    assert received(softmax_maps(0)).shape == (3, 5)
    np.testing.assert_allclose(received(softmax_maps(0)).sum(axis=1), total(softmax_maps(0)))


def test_received_follows_a_permutation_of_patches():
    attention, order = softmax_maps(0), [4, 2, 0, 1, 3]
    np.testing.assert_allclose(received(attention[..., order, :][..., order]), received(attention)[:, order])


def test_wrong_shape():
    with pytest.raises(ValueError, match="heads"):
        received(np.ones((2, 3, 3)))


def test_maps_of_an_encoder_are_batched():
    class Encoder(torch.nn.Module):
        config = SimpleNamespace(depth=2)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))
            self.dropout = torch.nn.Dropout(0.5)

        def attention(self, bold, layer):
            assert not self.training
            tokens = self.dropout(bold.unflatten(-1, (4, 3))[:, :, None] * self.scale * (layer + 1))
            return (tokens @ tokens.transpose(-1, -2)).softmax(dim=-1)

    bold = np.random.default_rng(0).standard_normal((7, 2, 12)).astype(np.float32)
    whole, parts = (attention_maps(Encoder(), bold, 1, batch_size=size) for size in (7, 3))
    assert whole.received.shape == (7, 4) and whole.total.shape == (7,)
    np.testing.assert_allclose(whole.received, parts.received, rtol=1e-6)
    np.testing.assert_allclose(whole.total, whole.received.sum(axis=1))
    with pytest.raises(ValueError, match="layer"):
        attention_maps(Encoder(), bold, 2)


def test_critical_layers():
    assert critical_layers(24) == {"first": 0, "middle": 11, "last": 23}  # the paper's 1st, 12th and 24th
    assert list(critical_layers(4).values()) == [0, 1, 3]
    assert list(critical_layers(1).values()) == [0, 0, 0]


def test_voxels_repeat_their_patch_and_padding_is_dropped():
    np.testing.assert_array_equal(to_voxels(np.array([[1, 2, 3]]), 8, 3), [[1, 1, 1, 2, 2, 2, 3, 3]])
    assert to_voxels(np.zeros((2, 3)), 9, 3).shape == (2, 9)
    for voxels in (6, 10):
        with pytest.raises(ValueError, match="patches"):
            to_voxels(np.zeros(3), voxels, 3)


def test_cortex():
    cortex = to_cortex(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([CORTEX - 1, 7]))
    assert cortex.shape == (2, CORTEX)
    assert cortex[0, -1] == 1 and cortex[1, 7] == 4 and np.isnan(cortex).sum() == 2 * (CORTEX - 2)
    with pytest.raises(ValueError, match="cortex"):
        to_cortex(np.ones(1), np.array([CORTEX]))
    with pytest.raises(ValueError, match="twice"):
        to_cortex(np.ones(2), np.array([3, 3]))
    with pytest.raises(ValueError, match="one each"):
        to_cortex(np.ones(2), np.array([3]))


def test_patch_means_undo_the_repetition_and_the_last_patch_may_be_smaller():
    np.testing.assert_allclose(patch_means(np.array([1.0, 3, 5, 7, 9]), 2), [2, 6, 9])
    values = np.random.default_rng(0).random((3, 4))
    np.testing.assert_allclose(patch_means(to_voxels(values, 11, 3), 3), values)
    assert patch_means(np.array([True, False, True]), 2).tolist() == [0.5, 1]


def test_sphere_has_every_cortical_vertex_and_hemispheres_that_mirror_each_other():
    from nfx.data import parcels

    points, names = sphere(), parcels(np.arange(CORTEX))
    assert points.shape == (CORTEX, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    assert (names[:LEFT] != "").sum() > 20_000 and not any(name.startswith("R_") for name in names[:LEFT])
    for name in ("V1", "FFC", "MT"):
        left, right = (points[names == f"{side}_{name}"].mean(axis=0) for side in "LR")
        assert np.linalg.norm(left * [-1, 1, 1] - right) < 0.15
