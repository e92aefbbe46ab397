import nibabel
import numpy as np
import pytest
from helpers_dataset import surface_sample, write_cifti
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis

from nfx.data import read_cifti

LEFT, RIGHT = np.array([3, 7, 32000]), np.array([0, 5])


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(1e4, 100, (7, 5)).astype(np.float32)


def test_reads_by_the_files_own_axis(tmp_path, data):
    cifti = read_cifti(write_cifti(tmp_path / "a.dtseries.nii", data, surface_sample(LEFT, RIGHT)))
    np.testing.assert_array_equal(cifti.data, data)
    assert cifti.data.dtype == np.float32 and type(cifti.data) is np.ndarray
    assert cifti.structure.tolist() == ["CIFTI_STRUCTURE_CORTEX_LEFT"] * 3 + ["CIFTI_STRUCTURE_CORTEX_RIGHT"] * 2
    assert cifti.vertex.tolist() == [3, 7, 32000, 0, 5]


def test_voxels_have_no_vertex(tmp_path, data):
    voxels = BrainModelAxis.from_mask(np.ones((2, 1, 1), bool), name="THALAMUS_LEFT", affine=np.eye(4))
    brain = surface_sample(LEFT, RIGHT)[:3] + voxels
    cifti = read_cifti(write_cifti(tmp_path / "a.dtseries.nii", data, brain))
    assert cifti.vertex.tolist() == [3, 7, 32000, -1, -1]
    assert cifti.structure[-1] == "CIFTI_STRUCTURE_THALAMUS_LEFT"


def test_any_number_of_volumes(tmp_path, data):
    cifti = read_cifti(write_cifti(tmp_path / "a.dtseries.nii", data[:1], surface_sample(LEFT, RIGHT)))
    assert cifti.data.shape == (1, 5)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_file_is_named(tmp_path, share):
    data = np.ones((200, 5), np.float32)
    path = write_cifti(tmp_path / "cut.dtseries.nii", data, surface_sample(LEFT, RIGHT))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="cut.dtseries.nii.*fetch or make"):
        read_cifti(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path, data, value):
    data[2, 1] = data[3, 4] = value
    with pytest.raises(ValueError, match="holds 2 values"):
        read_cifti(write_cifti(tmp_path / "a.dtseries.nii", data, surface_sample(LEFT, RIGHT)))


def test_files_that_are_no_time_series(tmp_path, data):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_cifti(tmp_path / "nothing.dtseries.nii")
    volume = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), volume)
    with pytest.raises(ValueError, match="is not CIFTI"):
        read_cifti(volume)
    text = tmp_path / "text.dtseries.nii"
    text.write_text("not an image")
    with pytest.raises(ValueError, match="text.dtseries.nii"):
        read_cifti(text)
    scalars = tmp_path / "a.dscalar.nii"
    names = ScalarAxis([str(i) for i in range(len(data))])
    nibabel.save(Cifti2Image(data, header=(names, surface_sample(LEFT, RIGHT))), scalars)
    with pytest.raises(ValueError, match="ScalarAxis"):
        read_cifti(scalars)
