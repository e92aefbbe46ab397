import numpy as np
import pytest
import torch

from nfx.evaluation import image_logits, n_way_top_k, score_clips, ssim, video_logits

SIZE, CLASSES = 16, 60


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    from transformers import (
        VideoMAEConfig,
        VideoMAEForVideoClassification,
        VideoMAEImageProcessorPil,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifiers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape = {"image_size": SIZE, "patch_size": 8, "num_labels": CLASSES, "initializer_range": 0.5}
    ViTForImageClassification(ViTConfig(**small, **shape)).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "vit")
    config = VideoMAEConfig(**small, **shape, num_frames=16, tubelet_size=2)  # trained with 16, used with 6
    VideoMAEForVideoClassification(config).save_pretrained(folder / "videomae")
    sides = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    VideoMAEImageProcessorPil(**sides).save_pretrained(folder / "videomae")
    return folder / "vit", folder / "videomae"


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (5, 6, SIZE, SIZE, 3), dtype=np.uint8)


def test_image_logits_do_not_depend_on_batches(classifiers, clips):
    frames = clips[0]
    found = image_logits(frames, classifiers[0])
    assert found.shape == (6, CLASSES) and found.dtype == np.float32
    np.testing.assert_allclose(image_logits(frames, classifiers[0], batch_size=4), found, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3


def test_image_logits_are_the_models_own(classifiers, clips):
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(classifiers[0]).eval()
    pixels = torch.tensor(clips[0] / 255 * 2 - 1, dtype=torch.float32).permute(0, 3, 1, 2)  # mean 0.5, deviation 0.5
    with torch.no_grad():
        np.testing.assert_allclose(image_logits(clips[0], classifiers[0]), model(pixels).logits, atol=1e-4)


def test_video_logits_see_the_order_of_frames(classifiers, clips):
    found = video_logits(clips, classifiers[1])
    assert found.shape == (5, CLASSES)
    np.testing.assert_allclose(video_logits(clips, classifiers[1], batch_size=2), found, atol=1e-5)
    assert np.abs(video_logits(clips[:, ::-1], classifiers[1]) - found).max() > 1e-3


def test_scores_of_a_perfect_and_of_a_wrong_decoder(classifiers, clips):
    perfect = score_clips(clips, clips, *classifiers, seed=0)
    assert list(perfect.columns) == ["ssim", "image_top1_1", "image_top1_3", "video_top1_1", "video_top1_3"]
    np.testing.assert_allclose(perfect, 1)
    decoded = clips[::-1]
    wrong = score_clips(clips, decoded, *classifiers, seed=4)
    np.testing.assert_allclose(wrong["ssim"], ssim(clips, decoded).mean(axis=1))
    by_frame = n_way_top_k(
        image_logits(clips[1], classifiers[0]), image_logits(decoded[1], classifiers[0]), truth_classes=3, seed=4
    )
    assert wrong["image_top1_3"][1] == pytest.approx(by_frame.mean())


@pytest.mark.parametrize("damage", ["missing", "unexpected"])
def test_a_snapshot_with_other_weights_is_named(classifiers, clips, tmp_path, damage):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(classifiers[0], broken)
    weights = load_file(broken / "model.safetensors")
    if damage == "missing":
        del weights["classifier.weight"]
    else:
        weights["surplus"] = torch.zeros(1)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"broken does not hold the weights of a ViTFor.*1 {damage}"):
        image_logits(clips[0], broken)


def test_missing_snapshot_is_named(clips, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        image_logits(clips[0], tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        image_logits(clips[0], tmp_path / "empty")
    with pytest.raises(ValueError, match="uint8"):
        image_logits(clips[0] / 255, tmp_path)
    with pytest.raises(ValueError, match="frames"):
        video_logits(clips[0], tmp_path)
