"""nfx.profile: both profiles load, and a mistake is told in one clear sentence."""

import pytest
import yaml
from pydantic import ValidationError

from nfx.files import as_json
from nfx.profile import PROFILES, Profile, load_profile

DEMO = yaml.safe_load((PROFILES / "demo.yaml").read_text())


def changed(tmp_path, keys, value):
    """Path of the demo's profile with one value changed; keys like 'encoder.dim'."""
    content = yaml.safe_load((PROFILES / "demo.yaml").read_text())
    *sections, last = keys.split(".")
    place = content
    for section in sections:
        place = place[int(section) if section.isdigit() else section]
    place[last] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_profiles_load(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.simulated == (name == "demo")


def test_every_key_of_the_file_is_an_attribute():
    dumped = load_profile("demo").model_dump(mode="json")
    assert dumped == as_json(DEMO)


def test_both_profiles_have_the_same_keys_and_the_same_table():
    paper = yaml.safe_load((PROFILES / "paper.yaml").read_text())
    assert paper.keys() == DEMO.keys()
    for section in DEMO.keys() - {"simulation", "rows"}:
        if isinstance(DEMO[section], dict):
            assert paper[section].keys() == DEMO[section].keys(), section
    assert paper["rows"] == DEMO["rows"]


def test_the_paper_profile_has_the_paper_s_sizes():
    paper = load_profile("paper")
    encoder = paper.encoder
    assert (encoder.patch_size, encoder.dim, encoder.depth) == (16, 1024, 24)
    assert (encoder.tokens, encoder.token_dim) == (77, 768)
    assert paper.data.train_segments * paper.data.train_volumes == 4320
    assert paper.data.test_segments * paper.data.test_volumes == 1200
    assert (paper.stage_one.steps, paper.stage_one.batch_size, paper.stage_two.batch_size) == (1000, 14, 24)
    assert paper.stage_one.learning_rate == paper.stage_two.learning_rate == 2e-5
    assert "subject3/test2_9" in paper.data.exclude_runs
    assert paper.pretraining.volumes_averaged == 10 and "rfMRI_REST1_LR_Atlas_MSMAll" in paper.pretraining.recordings


def test_table_1():
    profile = load_profile("demo")
    assert sorted(profile.rows) == list(range(11))
    assert profile.row(0).encoder == (None, None, None, None)
    assert [profile.row(r).beta for r in range(11)] == [None] * 8 + [0.25, 0.5, 0.75]
    assert max(profile.rows, key=lambda r: profile.rows[r].paper_ssim) == 8


def test_rows_that_share_an_encoder():
    profile = load_profile("demo")
    assert [profile.encoder_row(r) for r in range(11)] == [0, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1]


@pytest.mark.parametrize("row", [-1, 11])
def test_a_row_that_is_not_there(row):
    with pytest.raises(ValueError, match=f"row is {row}, expected one of"):
        load_profile("demo").row(row)


def test_a_profile_cannot_be_changed():
    profile = load_profile("demo")
    with pytest.raises(ValidationError, match="frozen"):
        profile.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        profile.encoder.dim = 1


def test_an_unknown_profile_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"no profile 'dmeo'.*\['demo', 'paper'\]"):
        load_profile("dmeo")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.width", 3, r"mine\.yaml: unknown key 'encoder\.width' \(value 3\)"),
        ("encoder.dim", "96", r"'encoder\.dim' is '96': input should be a valid integer"),
        ("encoder.dim", 97, r"encoder\.dim is 97, expected a multiple of encoder\.heads, 4"),
        ("encoder.depth", True, r"'encoder\.depth' is True"),
        ("encoder.depth", 2.5, r"'encoder\.depth' is 2\.5"),
        ("encoder.depth", 0, r"'encoder\.depth' is 0: input should be greater than 0"),
        ("stage_one.learning_rate", "1e-4", r"'1e-4'.*write 1\.0e-4"),
        ("stage_one.learning_rate", 0.0, r"'stage_one\.learning_rate' is 0\.0"),
        ("stage_two.condition_dropout", 1.5, r"'stage_two\.condition_dropout' is 1\.5"),
        ("sampling.solver", "euler", r"'sampling\.solver' is 'euler': input should be 'ddim', 'dpm\+\+' or 'unipc'"),
        ("training.precision", False, r"'training\.precision' is False: input should be 'no' or 'bf16'"),
        ("data.validation_segments", [18, 19], r"validation_segments is \[18, 19\].*training segments 1 to 18"),
        ("data.validation_segments", list(range(1, 19)), "some, not all"),
        ("data.subjects", [1, "2"], r"'data\.subjects\.1' is '2'"),
        ("data.recordings", "mine.yaml", "data.recordings is 'mine.yaml', expected null where the data are simulated"),
        ("data.recordings", 3, "'data.recordings' is 3"),
        ("pretraining.volumes_averaged", 0, r"'pretraining\.volumes_averaged' is 0"),
        ("pretraining.recordings", "/hcp/*.dtseries.nii", r"'pretraining\.recordings' is '/hcp/\*.dtseries.nii'"),
        ("pretraining.recordings", "*.nii.gz", r"'pretraining\.recordings' is '\*.nii.gz'"),
        ("headline_row", 12, "headline_row is 12, expected one of the rows"),
        ("averaged_subjects", [4], r"averaged_subjects is \[4\]"),
        ("simulation", None, "simulated is True, expected a section 'simulation'"),
        ("simulation.signal_to_noise", [0.1], "has 1 values, expected one for each"),
        ("rows.1.beta", 1.2, r"'rows\.1\.beta' is 1\.2"),
        ("name", "../demo", "'name' is '../demo'"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_file(tmp_path, key, value, message):
    path = changed(tmp_path, key, value)
    with pytest.raises(ValueError, match=message) as caught:
        load_profile(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text


def test_a_missing_key(tmp_path):
    content = {key: value for key, value in DEMO.items() if key != "seed"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="key 'seed' is missing"):
        load_profile(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", ""])
def test_a_file_that_is_no_profile(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="mine.yaml"):
        load_profile(tmp_path / "mine.yaml")


def test_a_profile_of_one_s_own(tmp_path):
    assert load_profile(changed(tmp_path, "seed", 7)).seed == 7
    assert isinstance(load_profile(str(tmp_path / "mine.yaml")), Profile)
