"""Layouts: what is listed from small folders written here, and from the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vqvdm.data.layouts import find_videos
from vqvdm.data.listing import TEST_SHARE
from vqvdm.errors import InputError
from vqvdm.recipe import Recipe


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _split(listing) -> dict[str, str | None]:
    return {sample.path: sample.split for sample in listing.samples}


def _labels(listing) -> dict[str, str | None]:
    return {sample.path: sample.label for sample in listing.samples}


# -------------------------------------------------------------------------------------------------------------- UCF-101

LISTS = {
    "classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\r\nArchery/v_Archery_g08_c02.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g09_c01.avi 2\r\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\r\nHandstandPushups/v_HandStandPushups_g01_c01.avi\r\n\r\n",
    "trainlist02.txt": "Archery/v_Archery_g01_c01.avi 1\r\n",
    "testlist02.txt": "Archery/v_Archery_g08_c01.avi\r\n",
}
FILES = (
    "Archery/v_Archery_g08_c01.avi",
    "Archery/v_Archery_g01_c01.avi",
    "HandstandPushups/v_HandstandPushups_g09_c01.avi",
    "HandstandPushups/v_HandStandPushups_g01_c01.avi",
)


def _ucf(videos: Path, lists: Path) -> None:
    _touch(videos, *FILES)
    lists.mkdir(parents=True)
    for name, text in LISTS.items():
        (lists / name).write_bytes(text.encode())


@pytest.mark.parametrize(
    ("videos", "lists", "given"),
    [
        (".", "ucfTrainTestlist", "."),  # inside the class root
        ("UCF-101", "ucfTrainTestlist", "UCF-101"),  # beside it
        ("UCF-101", "ucfTrainTestlist", "."),  # the folder of both
        ("videos", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "."),  # as the official archive unpacks
        ("data/UCF-101", "ucfTrainTestlist", "data/UCF-101"),  # above it
        (".", ".", "."),  # lists loose among the classes
    ],
)
def test_ucf101_wherever_the_lists_lie(tmp_path, videos, lists, given):
    if lists == ".":
        _ucf(tmp_path, tmp_path / "x")
        for file in (tmp_path / "x").iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / "x").rmdir()
    else:
        _ucf(tmp_path / videos, tmp_path / lists)
    listing = find_videos(tmp_path / given)
    assert listing.layout == "ucf101"
    assert listing.root.resolve() == (tmp_path / videos).resolve()
    assert listing.classes == ("Archery", "HandstandPushups")
    assert set(_split(listing)) == set(FILES)
    assert [sample.split for sample in listing.samples] == ["train", "train", "test", "test"]
    assert all(sample.label == sample.path.split("/")[0] for sample in listing.samples)
    assert listing.absent == ("Archery/v_Archery_g08_c02.avi",)
    assert listing.unlisted == 0


def test_ucf101_other_lists_other_suffixes_and_frame_dumps(tmp_path):
    _ucf(tmp_path, tmp_path / "ucfTrainTestlist")
    (tmp_path / FILES[0]).rename(tmp_path / "Archery/v_Archery_g08_c01.MP4")
    (tmp_path / FILES[1]).unlink()
    _touch(tmp_path, "Archery/v_archery_g01_c01/frame1.jpg", "Archery/extra.avi")
    listing = find_videos(tmp_path, split=2)
    assert _split(listing) == {"Archery/v_archery_g01_c01": "train", "Archery/v_Archery_g08_c01.MP4": "test"}
    assert listing.unlisted == 1
    everything = find_videos(tmp_path, split=0)
    assert len(everything.of_split("train")) == len(everything.of_split("test")) == 4
    assert Recipe.load("paper-ucf101", ["data.split=0"]).data.split == 0  # and so can be trained
    with pytest.raises(InputError, match=r"split 3: .*trainlist03\.txt is absent \(there are testlist01\.txt, "):
        find_videos(tmp_path, split=3)
    with pytest.raises(InputError, match="split 4: UCF-101 has the lists 1, 2 and 3"):
        find_videos(tmp_path, split=4)


def test_ucf101_without_any_of_its_videos_or_with_strange_lists(tmp_path):
    _ucf(tmp_path, tmp_path / "ucfTrainTestlist")
    (tmp_path / "ucfTrainTestlist/classInd.txt").write_text("1 Archery\n")
    with pytest.raises(InputError, match=r"'HandstandPushups' .* is not in classInd"):
        find_videos(tmp_path)
    (tmp_path / "ucfTrainTestlist/classInd.txt").write_text("Archery\n")
    with pytest.raises(InputError, match="each line must be <number> <class>"):
        find_videos(tmp_path)
    (tmp_path / "ucfTrainTestlist/classInd.txt").unlink()  # the class names then come from the lists
    assert find_videos(tmp_path).classes == ("Archery", "HandstandPushups")
    for name in FILES:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"none of the 5 videos named in .* is there"):
        find_videos(tmp_path)
    (tmp_path / "ucfTrainTestlist/testlist01.txt").write_text("v_Archery_g01_c01.avi\n")
    with pytest.raises(InputError, match=r"testlist01\.txt:1: .* is not <class>/<video>"):
        find_videos(tmp_path)


def test_real_ucf101_and_its_relatives(real_data):
    for split, train, test in ((1, 2, 9), (2, 11, 0), (3, 11, 0)):
        listing = find_videos(real_data / "ucf101-mini", split=split)
        assert (len(listing.of_split("train")), len(listing.of_split("test"))) == (train, test)
        assert len(listing.absent) == 13_309
        assert len(listing.classes) == 101
    for path in ("asl", "asl/videos"):
        listing = find_videos(real_data / path)
        assert (listing.layout, len(listing.classes)) == ("ucf101", 24)
        assert (len(listing.of_split("train")), len(listing.of_split("test"))) == (588, 148)


# -------------------------------------------------------------------------------------------------------- frame folders


def test_sky_timelapse_nests_its_frame_folders(tmp_path):
    names = [
        "sky_train/07U_f-rk9oI/07U_f-rk9oI_1/07U_f-rk9oI_frames_00000046.jpg",
        "sky_train/07U_f-rk9oI/07U_f-rk9oI_2/07U_f-rk9oI_frames_00000099.JPG",
        "sky_train/-abc/3/a_frames_1.png",
        "sky_test/_xyz/_xyz_1/_xyz_frames_00000001.jpg",
    ]
    _touch(tmp_path, *names, "readme.txt", "video_folder.py")
    for given in (tmp_path, tmp_path.parent / tmp_path.name):
        listing = find_videos(given)
        assert (listing.layout, listing.classes, listing.split_source) == ("frames", (), "folder names")
        assert _split(listing) == {str(Path(name).parent): name.split("/")[0][4:] for name in names}
        groups = {sample.path: sample.group for sample in listing.samples}
        assert groups["sky_train/07U_f-rk9oI/07U_f-rk9oI_1"] == groups["sky_train/07U_f-rk9oI/07U_f-rk9oI_2"]
        assert len(set(groups.values())) == 3


@pytest.mark.parametrize(
    "name", ["sky_train/id/id_{}/1.png", "data/sky_test/id{}/5/1.png", "id{0}/id{0}_1/id{0}_frames_00000009.jpg"]
)
def test_sky_timelapse_is_known_by_its_folders_or_its_images(tmp_path, name):
    _touch(tmp_path, *(name.format(number) for number in range(4)))
    listing = find_videos(tmp_path)
    assert (listing.layout, listing.classes, len(listing.samples)) == ("frames", (), 4)


def test_real_sky_timelapse(real_data):
    for path in ("sky-mini", "sky-mini/sky_timelapse"):
        listing = find_videos(real_data / path)
        assert (listing.layout, len(listing.samples)) == ("frames", 36)
        folders = {split: {s.path for s in listing.of_split(split)} for split in ("train", "test")}
        assert all("sky_test/" in path for path in folders["test"])
        assert all("sky_train/" in path for path in folders["train"])
    assert find_videos(real_data / "sky-mini/sky_timelapse/sky_test").layout == "frames"


def test_flat_frame_folders_are_split_by_their_names(tmp_path):
    for number in range(60):
        _touch(tmp_path, f"clip{number}/frame00000.png")
    listing = find_videos(tmp_path)
    assert {sample.group for sample in listing.samples} == {f"clip{number}" for number in range(60)}
    assert 1 <= len(listing.of_split("test")) <= 15


# ----------------------------------------------------------------------------------------------- class folders and flat


def test_class_folders(tmp_path):
    _touch(tmp_path, "run/a.mp4", "run/b.AVI", "jump/sub/c.webm", "jump/notes.txt", ".hidden/d.mp4")
    listing = find_videos(tmp_path)
    assert listing.layout == "folders"
    assert listing.classes == ("jump", "run")
    assert _labels(listing) == {"jump/sub/c.webm": "jump", "run/a.mp4": "run", "run/b.AVI": "run"}
    assert listing.split_source.startswith("no test split is named: 10% of the sources held out")


@pytest.mark.parametrize("base", ["", "videos/"])
def test_class_folders_below_split_folders(tmp_path, base):
    _touch(tmp_path, *(f"{base}{part}/{name}/{k}.mov" for part in ("train", "val") for name in "xy" for k in range(3)))
    listing = find_videos(tmp_path)
    assert listing.classes == ("x", "y")
    assert len(listing.of_split("train")) == len(listing.of_split("test")) == 6
    assert all("val/" in sample.path for sample in listing.of_split("test"))
    _touch(tmp_path, f"{base}test/x/1.mov")
    listing = find_videos(tmp_path)  # now validation belongs to neither
    assert [len(listing.of_split(split)) for split in ("train", "test")] == [6, 1]


def test_classes_of_frame_folders(tmp_path):
    _touch(tmp_path, "run/clip1/1.png", "run/clip2/1.png", "jump/clip1/1.png")
    for layout in ("auto", "folders"):
        listing = find_videos(tmp_path, layout=layout)
        assert listing.layout == "folders"
        assert _labels(listing) == {"jump/clip1": "jump", "run/clip1": "run", "run/clip2": "run"}
    assert find_videos(tmp_path, layout="frames").classes == ()
    _touch(tmp_path, "cover.jpg", "run/cover.jpg")  # above videos: no videos themselves
    listing = find_videos(tmp_path)
    assert set(_labels(listing)) == {"jump/clip1", "run/clip1", "run/clip2"}
    assert listing.notes == ("folders of images left out, as folders of images lie in them: 1 (first: run)",)
    _touch(tmp_path, "sing/1.png")
    with pytest.raises(InputError, match=r'1 folders of images directly and 3 in sub-folders; .*"folders".* "frames"'):
        find_videos(tmp_path)


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_of_files_beside_a_class_of_frame_folders(tmp_path, split):
    _touch(tmp_path, f"{split}x/a.mp4", f"{split}x/b.mp4", f"{split}y/clip/1.png", f"{split}y/clip/2.png")
    listing = find_videos(tmp_path)
    assert (listing.layout, listing.classes, listing.notes) == ("folders", ("x", "y"), ())
    assert _labels(listing) == {f"{split}x/a.mp4": "x", f"{split}x/b.mp4": "x", f"{split}y/clip": "y"}
    _touch(tmp_path, f"{split}x/thumbs/1.jpg", "posters/1.jpg")
    listing = find_videos(tmp_path)
    assert set(_labels(listing)) == {f"{split}x/a.mp4", f"{split}x/b.mp4", f"{split}y/clip"}
    assert listing.notes == (
        "videos left out, as they lie in no class: 1 (first: posters)",
        f"folders of images left out, as their class has video files: 1 (first: {split}x/thumbs)",
    )


def test_images_beside_videos_make_no_classes(tmp_path):
    _touch(tmp_path, "v/x/1.mp4", "v/x/1.jpg", "v/y/2.mp4", "v/y/thumbs/2.jpg", "v/thumbs/1.jpg", "cover.jpg")
    _touch(tmp_path, "thumbs/1.jpg")
    assert _labels(find_videos(tmp_path)) == {"v/x/1.mp4": "x", "v/y/2.mp4": "y"}
    _touch(tmp_path / "flat", "1.mp4", "2.mp4", "thumbs/1.jpg")
    listing = find_videos(tmp_path / "flat")
    assert (listing.layout, len(listing.samples)) == ("flat", 2)
    assert "folders of images left out" in listing.notes[0]


def test_files_and_frame_folders_at_several_depths_need_a_choice(tmp_path):
    _touch(tmp_path, "videos/x/1.mp4", "videos/y/1.mp4", "frames/x/1/1.png", "frames/y/1/1.png")
    with pytest.raises(InputError, match=r'2 video files and 2 folders of images .*"folders".*"flat".*"frames"'):
        find_videos(tmp_path)
    listing = find_videos(tmp_path, layout="frames")
    assert [sample.path for sample in listing.samples] == ["frames/x/1", "frames/y/1"]
    assert listing.notes == ("video files left out, as the layout is of images alone: 2 (first: videos/x/1.mp4)",)


def test_classes_called_like_splits_are_classes(tmp_path):
    _touch(tmp_path, "steam_train/a.mp4", "test/b.mp4", "car/c.mp4")
    for layout in ("auto", "folders"):
        listing = find_videos(tmp_path, layout=layout)
        assert listing.classes == ("car", "steam_train", "test")
        assert listing.notes[0].startswith("not taken as splits, though called so: steam_train, test (a split has only")
        assert listing.split_source.startswith("no test split is named")
    below = tmp_path / "below"
    _touch(below, *(f"{part}/{name}/1.mp4" for part in ("train", "test") for name in ("steam_train", "test", "car")))
    listing = find_videos(below)
    assert (listing.classes, listing.notes) == (("car", "steam_train", "test"), ())
    assert {sample.path.split("/")[0] for sample in listing.of_split("test")} == {"test"}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["bullet_train", "steam_train"], ("bullet_train", "steam_train")),
        (["steam_train"], ("steam_train",)),  # nothing beside it says that it were a split
        (["train", "car"], ("car", "train")),
        (["crash-test", "test"], ("crash-test", "test")),
        (["a_train/x", "a_train/y", "a_val/x"], ("x", "y")),
        (["x/train", "x/test", "y/train"], ("x", "y")),
        (["test/x", "test/y"], ("x", "y")),
    ],
)
def test_what_is_a_split_folder(tmp_path, names, classes):
    _touch(tmp_path, *(f"videos/{name}/1.mp4" for name in names))
    assert find_videos(tmp_path / "videos", layout="folders").classes == classes


def test_splits_beside_other_folders_need_a_choice(tmp_path):
    _touch(tmp_path, "train/x/1.mp4", "test/x/1.mp4", "extra/x/1.mp4")
    with pytest.raises(InputError, match="are test, train splits, or classes as extra beside them"):
        find_videos(tmp_path)


def test_flat_folder_and_one_single_sub_folder(tmp_path):
    _touch(tmp_path, *(f"{k}.mkv" for k in range(5)), "cover.jpg")
    assert (find_videos(tmp_path).layout, find_videos(tmp_path).classes) == ("flat", ())
    assert find_videos(tmp_path.parent / tmp_path.name).root == tmp_path
    nested = tmp_path / "nested"
    _touch(nested, "only/a.gif", "only/b.gif")
    assert find_videos(nested).layout == "flat"
    assert find_videos(nested, layout="folders").classes == ("only",)


def test_videos_at_two_levels_need_a_choice(tmp_path):
    _touch(tmp_path, "a.mp4", "run/b.mp4", "jump/c.mp4")
    with pytest.raises(InputError, match='1 videos directly and 2 in sub-folders; choose layout "folders"'):
        find_videos(tmp_path)
    assert _labels(find_videos(tmp_path, layout="folders")) == {"jump/c.mp4": "jump", "run/b.mp4": "run"}
    assert len(find_videos(tmp_path, layout="flat").samples) == 3


def test_links_are_followed_but_never_in_circles(tmp_path):
    _touch(tmp_path / "real", "a.mp4", "b.mp4")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "data")
    assert set(_labels(find_videos(tmp_path / "data"))) == {"run/a.mp4", "run/b.mp4"}


def test_the_held_out_tenth_is_fixed_grouped_and_stable(tmp_path):
    _touch(tmp_path, *(f"c/v_c_g{g:02d}_c{k:02d}.avi" for g in range(200) for k in (1, 2)), "d/x.avi")
    first = _split(find_videos(tmp_path))
    assert _split(find_videos(tmp_path)) == first
    test = {path for path, split in first.items() if split == "test"}
    assert TEST_SHARE * 400 / 2 < len(test) < TEST_SHARE * 400 * 2
    assert all(path.replace("_c01", "_c02") in test and path.replace("_c02", "_c01") in test for path in test)
    _touch(tmp_path, "c/new.avi")  # a new file moves no other one
    assert {path: split for path, split in _split(find_videos(tmp_path)).items() if path in first} == first


def test_a_few_videos_still_leave_one_for_the_test(tmp_path):
    _touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    listing = find_videos(tmp_path)
    assert (len(listing.of_split("train")), len(listing.of_split("test"))) == (2, 1)


def test_small_folders_keep_a_training_video_of_each_class(tmp_path):
    _touch(tmp_path / "flat", "a30.mp4", "ok.avi")  # the hashes of both names lie in the lowest tenth
    listing = find_videos(tmp_path / "flat")
    assert (len(listing.of_split("train")), len(listing.of_split("test"))) == (1, 1)
    for count in range(1, 12):
        root = tmp_path / str(count)
        _touch(root, *(f"{name}/{number}.mp4" for name in "abcdefgh" for number in range(count)))
        listing = find_videos(root)
        assert {sample.label for sample in listing.of_split("train")} == set("abcdefgh")
        assert bool(listing.of_split("test")) == (count > 1)
    _touch(tmp_path / "one", "only.mp4")
    assert len(find_videos(tmp_path / "one").of_split("train")) == 1


def test_new_files_move_no_old_ones_once_a_class_has_both_sides(tmp_path):
    names = [f"{name}/{number}.mp4" for number in range(60) for name in "xy"]
    _touch(tmp_path, *names[:40])
    before = _split(find_videos(tmp_path))
    sides = {(path[0], split) for path, split in before.items()}
    assert sides == {(name, split) for name in "xy" for split in ("train", "test")}
    for number in range(40, 120):
        _touch(tmp_path, names[number])
        after = _split(find_videos(tmp_path))
        assert before.items() <= after.items()
        before = after


# ------------------------------------------------------------------------------------------------------------- manifest


def test_manifests_in_both_forms_say_the_same(tmp_path):
    _touch(tmp_path, "v/a.mp4", "v/b.mp4")
    text = "File,label,split,start,end\nv/a.mp4,x,train,,\nv/a.mp4,y,train,1.5,3\nv/b.mp4,x,test,0,\n"
    text += "v/gone.mp4,x,train,,\n"
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    rows = [
        {"file_name": "v/a.mp4", "label": "x", "split": "train"},
        {"file": "v/a.mp4", "label": "y", "split": "Training", "start": 1.5, "end": 3},
        {"file": "v/b.mp4", "label": "x", "split": "test", "start": 0},
        {"file": "v/gone.mp4", "label": "x", "split": "train"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    for path in (tmp_path / "list.csv", tmp_path / "metadata.jsonl", tmp_path):
        listing = find_videos(path)
        assert (listing.layout, listing.root, listing.classes) == ("manifest", tmp_path, ("x", "y"))
        assert listing.absent == ("v/gone.mp4",)
        found = [(s.path, s.label, s.split, s.start, s.end) for s in listing.samples]
        assert found == [
            ("v/a.mp4", "x", "train", None, None),
            ("v/a.mp4", "y", "train", 1.5, 3.0),
            ("v/b.mp4", "x", "test", 0.0, None),
        ]


def test_a_manifest_of_file_names_only(tmp_path):
    _touch(tmp_path, *(f"{k}.mp4" for k in range(4)))
    (tmp_path / "m.csv").write_text("file\n" + "".join(f"{tmp_path}/{k}.mp4\n" for k in range(4)))
    listing = find_videos(tmp_path / "m.csv")
    assert listing.classes == ()
    assert len(listing.of_split("test")) >= 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "file,label\na.mp4\n", r"m\.csv:2: the row does not fit the columns file, label"),
        ("m.csv", "file,label\na.mp4,x,y\n", r"m\.csv:2: the row does not fit"),
        ("m.csv", "file,label\n,x\n", r"m\.csv:2: no file; the columns are file, label, .*found file, label"),
        ("m.csv", "file,lable,spilt\na.mp4,x,test\n", r"m\.csv:1: unknown column 'lable'; did you mean 'label'\?"),
        ("m.csv", "name,label\na.mp4,x\n", r"m\.csv:1: unknown column 'name'; did you mean 'file_name'\?"),
        (
            "m.csv",
            "file,xyzzy\na.mp4,x\n",
            r"unknown column 'xyzzy'; known here: file, .*label, split, start, end, fps",
        ),
        ("m.jsonl", '{"file": "a.mp4"}\n{"file": "a.mp4", "Spilt": "x"}\n', r"m\.jsonl:2: .*'spilt'; .*'split'\?"),
        ("m.csv", "file,fps\na.mp4,0\n", r"m\.csv:2: fps 0: must be frames per second, above 0"),
        ("m.csv", "file,fps\na.mp4,fast\n", r"m\.csv:2: fps 'fast': must be frames per second"),
        ("m.csv", "file,split\na.mp4,trian\n", r"m\.csv:2: split 'trian': must be train, val or test"),
        ("m.csv", "file,start,end\na.mp4,3,2\n", r"m\.csv:2: end 2\.0 s is not after start 3\.0 s"),
        ("m.csv", "file,start\na.mp4,soon\n", r"m\.csv:2: start 'soon': must be seconds"),
        ("m.csv", "file,start\na.mp4,-1\n", r"m\.csv:2: start '-1': must be seconds, 0 or more"),
        ("m.csv", "file\n", r"m\.csv: has no rows"),
        ("m.csv", "file\nb.mp4\n", r"m\.csv: none of its 1 files is there \(first: b\.mp4\)"),
        ("m.csv", "file,label\na.mp4,x\na.mp4,\n", r"m\.csv: 1 of 2 rows have no label"),
        ("m.jsonl", '{"file": "a.mp4"}\n{"file": \n', r"m\.jsonl:2: not JSON"),
        ("m.jsonl", '["a.mp4"]\n', r"m\.jsonl:1: each line must be an object such as \{"),
    ],
)
def test_a_bad_manifest_row_is_named(tmp_path, name, text, message):
    _touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        find_videos(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_missing_empty_and_unsuitable_folders(tmp_path):
    with pytest.raises(InputError, match=r"absent: no such folder or manifest$"):
        find_videos(tmp_path / "absent")
    with pytest.raises(InputError, match=f"^absent: no such folder or manifest in {re.escape(str(Path.cwd()))}, where"):
        find_videos("absent")
    with pytest.raises(InputError, match=r"no videos found \(.*\.avi, .*folders of \.bmp"):
        find_videos(tmp_path)
    _touch(tmp_path, "a.mp4", "sub/notes.txt")
    with pytest.raises(InputError, match=r"a\.mp4: is a file; give the folder"):
        find_videos(tmp_path / "a.mp4")
    for layout, message in {
        "ucf101": 'layout "ucf101": no ucfTrainTestlist folder',
        "frames": 'layout "frames": no folder holds images',
        "folders": 'layout "folders": no videos in sub-folders; expected <class>/<video>',
        "manifest": 'layout "manifest": holds none of manifest.csv',
    }.items():
        with pytest.raises(InputError, match=message):
            find_videos(tmp_path, layout=layout)
    with pytest.raises(InputError, match='layout "flat": no videos'):
        find_videos(tmp_path / "sub", layout="flat")
    with pytest.raises(InputError, match="layout 'ucf': must be one of auto, ucf101"):
        find_videos(tmp_path, layout="ucf")
    with pytest.raises(InputError, match="is a file; layout 'flat' needs a folder"):
        find_videos(tmp_path / "a.mp4", layout="flat")


def test_images_in_the_root_are_one_video(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    assert [sample.path for sample in find_videos(tmp_path).samples] == ["."]


def test_folders_without_videos_and_a_single_class_are_noted(tmp_path):
    for name in ("Hund", "Katze", "leer"):
        (tmp_path / name).mkdir()
    (tmp_path / "Hund" / "a.mp4").touch()
    (tmp_path / "Katze" / "k.vob").touch()
    listing = find_videos(tmp_path)
    assert listing.layout == "flat"
    assert "folders left out, as no video lies in them: 2 (first: Katze)" in listing.notes
    assert any("all videos lie in Hund, and one class is none" in note for note in listing.notes)
    (tmp_path / "Katze" / "k.mpg").touch()
    listing = find_videos(tmp_path)
    assert listing.classes == ("Hund", "Katze")
    assert listing.notes == ("folders left out, as no video lies in them: 1 (first: leer)",)


def test_folders_within_a_class_are_of_that_class_with_a_note(tmp_path):
    for name in ("a/1", "a/big/2", "a/small/3", "b/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    listing = find_videos(tmp_path)
    assert [sample.label for sample in listing.samples] == ["a", "a", "a", "b"]
    assert listing.notes == (
        "videos in folders of their class's folder, which count as the class: 2 (first: a/big/2.mp4)",
    )
