import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from nfx.encoder import info_nce, info_nce_one_way, retrieval


def pairs(batch=7, dim=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, dim)).astype(np.float32), rng.normal(size=(batch, dim)).astype(np.float32)


def direct(query, key, temperature):
    """Mean over rows of -log softmax of the own pair's cosine, written out."""
    terms = []
    for i, q in enumerate(query):
        cosine = np.array([q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in key]) / temperature
        terms.append(logsumexp(cosine) - cosine[i])
    return np.mean(terms)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_info_nce_against_the_formula(temperature):
    a, b = pairs()
    one_way = info_nce_one_way(torch.tensor(a), torch.tensor(b), temperature).item()
    both = info_nce(torch.tensor(a), torch.tensor(b), torch.tensor(temperature)).item()
    assert one_way == pytest.approx(direct(a, b, temperature), rel=1e-4)
    assert both == pytest.approx((direct(a, b, temperature) + direct(b, a, temperature)) / 2, rel=1e-4)
    assert abs(one_way - both) > 1e-3


def test_info_nce_is_symmetric_and_blind_to_length():
    a, b = map(torch.tensor, pairs())
    torch.testing.assert_close(info_nce(a, b, 0.1), info_nce(b, a, 0.1))
    torch.testing.assert_close(info_nce(a, b, 0.1), info_nce(3 * a, b * torch.arange(1, 8)[:, None], 0.1))


def test_minimum_at_identical_orthogonal_pairs():
    a = torch.eye(6)
    perfect = info_nce(a, a, 0.07)
    assert perfect < 1e-4
    assert perfect < info_nce(a, a.roll(1, dims=0), 0.07)
    assert info_nce(torch.ones(6, 6), a, 0.07).item() == pytest.approx(
        np.log(6), rel=1e-5
    )  # uninformative: log of the batch
    wrong = (a + 0.01).requires_grad_()
    info_nce(wrong, a, 0.07).backward()
    assert torch.isfinite(wrong.grad).all()


def test_info_nce_in_bf16_training_is_computed_in_float32():
    a, b = map(torch.tensor, pairs())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(a, b, 0.01)
    assert torch.equal(mixed, info_nce(a, b, 0.01))


def test_refused():
    a, b = map(torch.tensor, pairs())
    with pytest.raises(ValueError, match=r"\(7, 5\) and \(6, 5\)"):
        info_nce(a, b[:6], 0.1)
    with pytest.raises(ValueError, match="positive"):
        info_nce(a, b, 0.0)


def test_retrieval():
    target = torch.eye(10)
    assert retrieval(target, target) == {"top1": 1.0, "top5": 1.0, "chance1": 0.1, "chance5": 0.5}
    assert retrieval(torch.ones(10, 10), target)["top5"] == 0.0  # ties count against
    half = torch.cat([target[:5], target[5:].roll(1, dims=0)])
    assert retrieval(half, target)["top1"] == 0.5
    noise = torch.randn(2000, 30, generator=torch.Generator().manual_seed(0))
    scores = retrieval(noise[:1000], noise[1000:])
    assert scores["top5"] == pytest.approx(scores["chance5"], abs=0.01)
