import numpy as np
import pytest
import torch

from nfx.evaluation import image_logits, n_way_top_k, score_clips, ssim, video_logits
from nfx.files import sha256, write_json

SIZE, CLASSES = 16, 60
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, which VideoMAE was trained with


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


@pytest.fixture(scope="module")
def published(classifiers, tmp_path_factory):
    """The same weights, with settings and names as the published snapshots were saved years ago."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("published")
    old = {"do_normalize": True, "do_resize": True, "resample": 2, "size": SIZE}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings = {
        "vit": old | half,
        "videomae": old | {"do_center_crop": True, "crop_size": SIZE, "image_mean": MEAN, "image_std": DEVIATION}
        | {"feature_extractor_type": "VideoMAEFeatureExtractor"},
    }  # fmt: skip
    for name, source in zip(settings, classifiers, strict=True):
        shutil.copytree(source, folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings[name]))
    path = folder / "videomae" / "model.safetensors"
    names = {".attention.query.bias": ".attention.q_bias", ".attention.value.bias": ".attention.v_bias"}
    weights = {}
    for name, tensor in load_file(path).items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor + 0.5 if name.endswith("_bias") else tensor  # zeros would hide that they are lost
    assert sum(name.endswith(("q_bias", "v_bias")) for name in weights) == 2
    save_file(weights, path, metadata={"format": "pt"})
    return folder / "vit", folder / "videomae"


def test_vit_as_published_gives_the_same_logits(classifiers, published, clips):
    np.testing.assert_allclose(image_logits(clips[0], published[0]), image_logits(clips[0], classifiers[0]), atol=1e-6)


def test_videomae_as_published_keeps_its_biases_and_takes_six_frames(classifiers, published, clips):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    own = VideoMAEForVideoClassification.from_pretrained(classifiers[1])
    state = own.state_dict()
    for name in state:
        if name.endswith((".attention.query.bias", ".attention.value.bias")):
            state[name] = state[name] + 0.5
    expected = VideoMAEForVideoClassification(VideoMAEConfig.from_pretrained(classifiers[1], num_frames=6)).eval()
    expected.load_state_dict(state)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    pixels = (torch.from_numpy(clips).movedim(-1, 2) / 255 - mean) / deviation
    with torch.no_grad():
        np.testing.assert_allclose(video_logits(clips, published[1]), expected(pixels).logits, atol=1e-4)
    assert np.abs(video_logits(clips, published[1]) - video_logits(clips, classifiers[1])).max() > 1e-2


def test_pickled_weights_are_not_read(classifiers, clips, tmp_path):
    import shutil

    from safetensors.torch import load_file

    shutil.copytree(classifiers[0], tmp_path / "vit")
    torch.save(load_file(tmp_path / "vit" / "model.safetensors"), tmp_path / "vit" / "pytorch_model.bin")
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vit holds no complete snapshot of ViTForImageClassification"):
        image_logits(clips[0], tmp_path / "vit")


def test_what_was_judged_once_is_kept_until_pixels_or_weights_change(classifiers, clips, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    cache, mine = tmp_path / "judged", tmp_path / "vit"
    shutil.copytree(classifiers[0], mine)
    found = image_logits(clips[0], mine, cache=cache)
    np.testing.assert_array_equal(found, image_logits(clips[0], mine))
    (kept,) = cache.glob("*.npy")
    np.save(kept, found + 1)  # so that a kept answer is told from a new one
    write_json(kept.with_suffix(".json"), sha256(kept))
    np.testing.assert_array_equal(image_logits(clips[0], mine, cache=cache), found + 1)
    other = clips[0].copy()
    other[3, 0, 0, 0] ^= 1
    np.testing.assert_allclose(image_logits(other, mine, cache=cache), found, atol=0.1)
    weights = load_file(mine / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 5
    save_file(weights, mine / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(image_logits(clips[0], mine, cache=cache), found + 5, atol=1e-4)
    assert len(list(cache.glob("*.npy"))) == 3


def test_what_was_judged_and_is_damaged_is_judged_again(classifiers, clips, tmp_path):
    found = image_logits(clips[0], classifiers[0], cache=tmp_path)
    (kept,) = tmp_path.glob("*.npy")
    whole = kept.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 64]), b""):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(image_logits(clips[0], classifiers[0], cache=tmp_path), found)
        assert kept.read_bytes() == whole
