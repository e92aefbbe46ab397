import tracemalloc

import av
import nibabel
import numpy as np
import pytest
from helpers_dataset import claiming, surface_sample, write_cifti, write_dataset, write_film
from nibabel.cifti2 import Cifti2Image, Cifti2MetaData, ScalarAxis

from nfx.data import check_dataset, inspection, read_cifti
from nfx.data.inspection import summary

SIZE = {"train_segments": 2, "test_segments": 2, "train_repeats": 2, "test_repeats": 9}
SIZE |= {"train_volumes": 3, "test_volumes": 3}
BRAIN = surface_sample(np.arange(0, 2000, 100), np.arange(50, 2050, 100))  # of the helper's data set
FILES = 4 + 2 * (2 * 2 + 2 * 9)


@pytest.fixture
def root(tmp_path):
    """A folder that holds a whole data set of subjects 1 and 3."""
    for subject in (1, 3):
        write_dataset(tmp_path / "video_fmri_dataset", segments=2, tests=2, volumes=3, test_repeats=9, subject=subject)
    return tmp_path


def check(root, subjects=(1, 3)):
    """The table's rows that are not present, as {file: (state, detail)}; and how many are."""
    table = check_dataset(root, subjects, **SIZE)
    assert list(table.columns) == ["part", "file", "state", "detail"] and table["file"].is_unique
    others = table[table["state"] != "present"]
    found = {row.file: (row.state, row.detail) for row in others.itertuples()}
    return found, len(table) - len(others)


def run(name, subject=1):
    return f"subject{subject}/fmri/{name.split('_')[0]}/cifti/{name}_Atlas.dtseries.nii"


def rows(count):
    return np.zeros((count, 40))


def test_a_whole_data_set(root):
    late = {run("test2_9", 3): ("late", "about 10 s behind the film; the paper profile excludes it")}
    assert check(root) == (late, FILES - 1)
    assert check(root / "video_fmri_dataset", [1]) == ({}, 4 + 22)


def test_the_published_numbers(root):
    table = check_dataset(root, (1, 2, 3))
    expected = table[table["state"] != "unexpected"]
    assert expected["part"].value_counts().to_dict() == {"stimuli": 23, "subject1": 86, "subject2": 86, "subject3": 86}
    for name in ("stimuli/seg18.mp4", run("seg18_2", 2), run("test5_10", 3)):
        assert expected.set_index("file").loc[name, "state"] == "missing"
    detail = table.set_index("file").loc[run("seg1_1"), "detail"]
    assert detail == "8 volumes, 245 or 246 were expected"


def test_films(root):
    films = root / "video_fmri_dataset/stimuli"
    whole = (films / "seg1.mp4").read_bytes()
    (films / "seg1.mp4").write_bytes(whole[: len(whole) // 2])
    write_film(films / "seg2.mp4", range(150))
    write_film(films / "test1.mp4", range(60 * 3 + 30))
    write_film(films / "test2.mp4", range(25 * 6), rate=25)
    found, present = check(root, [])
    assert found.pop("stimuli/seg1.mp4")[0] == "truncated"
    assert found == {
        "stimuli/seg2.mp4": ("truncated", "lasts 5.00 s, 6 s were expected"),
        "stimuli/test1.mp4": ("damaged", "lasts 7.00 s, 6 s were expected"),
        "stimuli/test2.mp4": ("damaged", "25 frames per second, 30 were expected"),
    }
    assert present == 0
    (films / "seg1.mp4").write_bytes(b"<html>not found</html>")
    (films / "seg2.mp4").write_bytes(b"")
    found, _ = check(root, [])
    assert [found[f"stimuli/seg{n}.mp4"][0] for n in (1, 2)] == ["truncated"] * 2


def test_a_cut_film_with_its_index_first(root):
    """Such a film opens and announces its whole length."""
    film = root / "video_fmri_dataset/stimuli/seg1.mp4"
    with av.open(str(film)) as source, av.open(str(film) + ".mp4", "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    moved = film.with_name("seg1.mp4.mp4").rename(film)
    assert check(root, [])[0] == {}
    content = moved.read_bytes()
    moved.write_bytes(content[:-100])
    found, _ = check(root, [])
    assert found["stimuli/seg1.mp4"] == ("truncated", f"{len(content) - 100} bytes, but its header says {len(content)}")


def test_recordings(root):
    data_set = root / "video_fmri_dataset"
    truth = {}

    (data_set / run("seg1_1")).unlink()
    truth[run("seg1_1")] = ("missing", "")

    content = (data_set / run("seg1_2")).read_bytes()
    (data_set / run("seg1_2")).write_bytes(content[:-1])
    truth[run("seg1_2")] = ("truncated", f"{len(content) - 1} bytes, but its header says {len(content)}")

    (data_set / run("seg2_1")).write_bytes(content[:100])
    truth[run("seg2_1")] = ("truncated", "100 bytes, less than a header")

    write_cifti(data_set / run("seg2_2"), rows(10), BRAIN)
    truth[run("seg2_2")] = ("damaged", "10 volumes, 8 or 9 were expected")

    shifted = surface_sample(np.arange(1, 2001, 100), np.arange(50, 2050, 100))
    write_cifti(data_set / run("test1_1"), rows(8), shifted)
    truth[run("test1_1")] = ("damaged", "has other grayordinates than most runs of the subject")

    names = ScalarAxis([str(n) for n in range(8)])
    nibabel.save(Cifti2Image(rows(8).astype(np.float32), header=(names, BRAIN)), data_set / run("test1_2"))
    axes = "its CIFTI header cannot be read (axes (ScalarAxis, BrainModelAxis), expected (SeriesAxis, BrainModelAxis))"
    truth[run("test1_2")] = ("damaged", axes)

    nibabel.save(nibabel.Nifti2Image(np.zeros((2, 2, 2)), np.eye(4)), root / "volume.nii")
    (root / "volume.nii").rename(data_set / run("test1_3"))
    truth[run("test1_3")] = ("damaged", "no CIFTI header")

    (data_set / run("test1_4")).rename(data_set / run("test1_4").replace("_Atlas", ".Atlas"))
    truth[run("test1_4").replace("_Atlas", ".Atlas")] = ("misnamed", f"expected {run('test1_4')}")

    (data_set / run("test1_5")).rename(data_set / run("test1_5").replace("test1_5_Atlas", "Test1_5_atlas"))
    truth[run("test1_5").replace("test1_5_Atlas", "Test1_5_atlas")] = ("misnamed", f"expected {run('test1_5')}")

    (data_set / run("test1_6")).rename(data_set / run("test1_6").replace("test1_6", "test16"))
    truth[run("test1_6").replace("test1_6", "test16")] = ("unexpected", "")
    truth[run("test1_6")] = ("missing", "")

    content = bytearray((data_set / run("test1_7")).read_bytes())
    content[content.index(b"<BrainModel ") + 3] = ord("<")
    (data_set / run("test1_7")).write_bytes(content)

    (data_set / run("test1_8")).write_bytes(b"\0" * 1000)
    (data_set / run("test1_8")).with_name(".hidden").touch()

    found, present = check(root, [1])
    for name, reason in (("test1_7", "its CIFTI header cannot be read"), ("test1_8", "no NIfTI-2 header")):
        state, detail = found.pop(run(name))
        assert state == "damaged" and detail.startswith(reason)
    assert found == truth
    assert present == 4 + 22 - 12


CLAIMS = {  # volumes and grayordinates, the data's type, where data begin
    "no volume of ten million grayordinates": ((0, 10**7), None, None),
    "fewer than no volumes, and data after 17 GB": ((-1000, 10**7), None, 2**34),
    "values of no bytes": ((3, 10**7), 0, None),
    "more than there is": ((3, 10**7), None, None),
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_header_s_claim_takes_no_memory(tmp_path, claim):
    path = write_cifti(tmp_path / "run.dtseries.nii", rows(9), BRAIN)
    whole = path.read_bytes()
    path.write_bytes(claiming(whole, (9, 40)))
    assert inspection.check_recording(path, 4).state == "present"
    assert read_cifti(path).data.shape == (9, 40)
    path.write_bytes(claiming(whole, *claim))
    tracemalloc.start()
    try:
        assert inspection.check_recording(path, 4).state in ("damaged", "truncated")
        with pytest.raises(ValueError, match="run.dtseries.nii is not CIFTI, or is damaged"):
            read_cifti(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_another_surface_is_damaged(root, monkeypatch):
    monkeypatch.setattr(inspection, "SURFACE_VERTICES", 10242)
    inspection._axes.cache_clear()
    found, _ = check(root, [1])
    inspection._axes.cache_clear()
    assert "left cortex of 32492 vertices, expected fsLR-32k (10242)" in found[run("seg1_1")][1]


def test_metadata_do_not_hide_that_axes_are_the_same(root):
    for repeat in (1, 2):
        path = root / "video_fmri_dataset" / run(f"seg1_{repeat}")
        image = nibabel.load(path)
        data = np.array(image.dataobj)
        image.header.matrix.metadata = Cifti2MetaData({"Provenance": f"made from file {repeat}"})
        nibabel.save(Cifti2Image(data, header=image.header), path)
    inspection._axes.cache_clear()
    assert check(root, [1])[0] == {}
    # Of 8 and of 9 volumes, and the two above, which nibabel writes a little differently the second time.
    assert inspection._axes.cache_info().misses == 3


def test_summary(root):
    data_set = root / "video_fmri_dataset"
    (data_set / "stimuli/seg1.mp4").unlink()
    (data_set / "stimuli/notes.txt").touch()
    lines = summary(check_dataset(root, (1, 2, 3), **SIZE)).splitlines()
    assert lines[0].split() == ["state", "present", "late", "missing", "unexpected"]
    counts = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in lines[2:6]}
    assert counts == {
        "stimuli": [3, 0, 1, 1], "subject1": [22, 0, 0, 0], "subject2": [0, 0, 22, 0], "subject3": [21, 1, 0, 0],
    }  # fmt: skip
    assert lines[7:] == [
        "missing: stimuli/seg1.mp4",
        "unexpected: stimuli/notes.txt",
        "missing: all 22 files of subject2",
        f"late: {run('test2_9', 3)} (about 10 s behind the film; the paper profile excludes it)",
    ]


def test_the_command(root, capsys, monkeypatch):
    small = inspection.check_dataset
    monkeypatch.setattr(inspection, "check_dataset", lambda *given: small(*given, **SIZE))
    with pytest.raises(SystemExit) as end:
        inspection.main([str(root), "--subjects", "1", "3"])
    assert end.value.code == 0 and "late: subject3" in capsys.readouterr().out
    (root / "video_fmri_dataset" / run("seg1_1")).unlink()
    with pytest.raises(SystemExit) as end:
        inspection.main([str(root), "--subjects", "1", "3"])
    assert end.value.code == 1 and "missing: subject1/fmri/seg1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nowhere neither is nor holds video_fmri_dataset/; .*nfx.data.fetch"):
        inspection.main([str(root / "nowhere")])
