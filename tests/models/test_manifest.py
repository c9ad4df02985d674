import re
from dataclasses import replace
from typing import Any

import pytest

from models.errors import ManifestError
from models.manifest import Manifest, ModelFile, Variant, read_manifest
from models.registry import DEFAULT_MODEL, known_manifests
from posecore.skeleton import COCO18, Skeleton

GOOD = """\
name = "tiny"
description = "a network for tests"
license = "Apache-2.0"
skeleton = "coco18"

[input]
color = "RGB"
mean = [127.5, 128, 129]
scale = [2, 4.0, 8]
stride = 8
height = 256
pad = [1, 2, 3]

[output]
heatmaps = "heat"
pafs = "field"

[[variants]]
name = "FP16"
[[variants.files]]
path = "tiny.xml"
bytes = 6
sha384 = "abc"
url = "https://example.org/tiny.xml"
[[variants.files]]
path = "tiny.bin"
bytes = 7
sha384 = "def"

[[variants]]
name = "FP32"
[[variants.files]]
path = "tiny.onnx"
bytes = 8
sha384 = "123"
"""


@pytest.fixture
def tiny() -> Manifest:
    return read_manifest(GOOD, "tiny.toml")


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_a_manifest_says_how_to_call_the_network(tiny: Manifest):
    assert tiny == Manifest(
        name="tiny",
        description="a network for tests",
        license="Apache-2.0",
        skeleton=COCO18,
        color="RGB",
        mean=(127.5, 128.0, 129.0),
        scale=(2.0, 4.0, 8.0),
        stride=8,
        height=256,
        pad=(1, 2, 3),
        heatmaps="heat",
        pafs="field",
        variants=(
            Variant(
                "FP16",
                (ModelFile("tiny.xml", 6, "abc", "https://example.org/tiny.xml"), ModelFile("tiny.bin", 7, "def")),
            ),
            Variant("FP32", (ModelFile("tiny.onnx", 8, "123"),)),
        ),
    )


def test_a_manifest_of_ones_own_network_needs_no_variants():
    assert read_manifest(GOOD.split("[[variants]]")[0], "own.toml").variants == ()


BAD = [
    ('name = "tiny"', "name = ", "not TOML: "),
    ('name = "tiny"', "", "name is missing, expected a text"),
    ('name = "tiny"', "name = 3", "name is 3, expected a text"),
    ('license = "Apache-2.0"', "", "license is missing, expected a text"),
    ('skeleton = "coco18"', 'skeleton = "dog"', "unknown skeleton 'dog'; known: coco18"),
    ("[input]", "[inputs]", "input is missing, expected a table"),
    ("[output]", "[[output]]", "output is [{'heatmaps': 'heat', 'pafs': 'field'}], expected a table"),
    ('color = "RGB"', 'color = "GRB"', "input.color is 'GRB', expected 'BGR' or 'RGB'"),
    ('color = "RGB"', "color = true", "input.color is True, expected a text"),
    ("mean = [127.5, 128, 129]", "mean = 127.5", "input.mean is 127.5, expected a list of 3 numbers"),
    ("mean = [127.5, 128, 129]", "mean = [1, 2]", "input.mean is [1, 2], expected 3 numbers"),
    ("mean = [127.5, 128, 129]", "mean = [1, true, 2]", "input.mean is [1, True, 2], expected 3 numbers"),
    ("mean = [127.5, 128, 129]", "mean = [1, nan, 2]", "input.mean is [1, nan, 2], expected 3 numbers"),
    ("scale = [2, 4.0, 8]", 'scale = ["2", 4, 8]', "input.scale is ['2', 4, 8], expected 3 numbers"),
    ("scale = [2, 4.0, 8]", "scale = [2, 0, 8]", "input.scale divides the pixels and cannot be 0"),
    ("pad = [1, 2, 3]", "", "input.pad is missing, expected a list of 3 numbers"),
    ("pad = [1, 2, 3]", "pad = [1, 2, inf]", "input.pad is [1, 2, inf], expected 3 numbers"),
    ("pad = [1, 2, 3]", f"pad = [1, 2, {10**400}]", "input.pad is [1, 2, 1000"),
    ("height = 256", f"height = {'9' * 5000}", "not TOML: "),
    ("stride = 8", "stride = 0", "input.stride is 0, expected a positive whole number"),
    ("stride = 8", "stride = true", "input.stride is True, expected a positive whole number"),
    ("stride = 8", 'stride = "8"', "input.stride is '8', expected a positive whole number"),
    ("height = 256", "height = 256.0", "input.height is 256.0, expected a positive whole number"),
    ("height = 256", "height = 250", "input.height 250 is not a multiple of input.stride 8"),
    ('pafs = "field"', "", "output.pafs is missing, expected a text"),
    ('heatmaps = "heat"', "heatmaps = 0", "output.heatmaps is 0, expected a text"),
    ('path = "tiny.xml"', 'path = "../tiny.xml"', "file path '../tiny.xml' must be a plain file name"),
    ('path = "tiny.xml"', 'path = "/etc/passwd"', "file path '/etc/passwd' must be a plain file name"),
    ('path = "tiny.xml"', 'path = ".."', "file path '..' must be a plain file name"),
    ('path = "tiny.xml"', 'path = ""', "file path '' must be a plain file name"),
    ('path = "tiny.xml"', 'path = "a/../../tiny.xml"', "file path 'a/../../tiny.xml' must be a plain file name"),
    ('path = "tiny.xml"', 'path = "a\\u0000b"', r"file path 'a\x00b' must be a plain file name"),
    ('path = "tiny.xml"', 'path = "\\u001b[2J"', r"file path '\x1b[2J' must be a plain file name"),
    ('name = "FP32"', 'name = "/FP32"', "variant name '/FP32' must be a plain name"),
    ("bytes = 6", "bytes = -6", "bytes is -6, expected a positive whole number"),
    ('sha384 = "abc"', "", "sha384 is missing, expected a text"),
    ('url = "https://example.org/tiny.xml"', "url = 80", "url is 80, expected a text"),
    ('name = "FP32"', 'name = "../FP32"', "variant name '../FP32' must be a plain name"),
    ('name = "FP32"', "", "name is missing, expected a text"),
    ('[[variants]]\nname = "FP16"', '[[variants]]\nname = "none"\n[[variants]]', "variant none has no files"),
]


@pytest.mark.parametrize(("old", "new", "problem"), BAD, ids=[new[:60] or f"no {old}" for old, new, _ in BAD])
def test_a_bad_manifest_is_named_with_its_problem(old: str, new: str, problem: str):
    with pytest.raises(ManifestError, match=f"^{re.escape(f'bad.toml: {problem}')}"):
        read_manifest(changed(old, new), "bad.toml")


@pytest.mark.parametrize("variants", ["3", "[1, 2]", '[{name = "a", files = 3}]', '[{name = "a", files = ["a.xml"]}]'])
def test_variants_and_files_are_tables(variants: str):
    text = f"variants = {variants}\n" + GOOD.split("[[variants]]")[0]
    with pytest.raises(ManifestError, match=r"(variants|files) is .*, expected tables"):
        read_manifest(text, "bad.toml")


@pytest.mark.parametrize(("name", "found"), [(None, "FP16"), ("FP16", "FP16"), ("FP32", "FP32")])
def test_the_first_variant_is_the_default(tiny: Manifest, name: str | None, found: str):
    assert tiny.variant(name).name == found


def test_an_unknown_variant_is_answered_with_the_known_ones(tiny: Manifest):
    with pytest.raises(ManifestError, match="tiny: no variant INT4; there are FP16, FP32"):
        tiny.variant("INT4")


@pytest.mark.parametrize(
    "change",
    [
        {"color": "BGR"},
        {"mean": (0.0, 0.0, 0.0)},
        {"scale": (2.0, 4.0, 9.0)},
        {"stride": 4},
        {"pad": (1, 2, 4)},
        {"heatmaps": "other"},
        {"pafs": "other"},
        {"skeleton": Skeleton("other", COCO18.keypoints, COCO18.limbs, COCO18.sigmas)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_knows_how_the_network_is_called(tiny: Manifest, change: dict[str, Any]):
    files = tiny.variants[0].files
    assert replace(tiny, **change).digest(files) != tiny.digest(files)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"description": "other"}, {"license": "MIT"}, {"variants": ()}, {"height": 512}],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_is_of_nothing_else(tiny: Manifest, change: dict[str, Any]):
    files = tiny.variants[0].files
    assert replace(tiny, **change).digest(files) == tiny.digest(files)


def test_the_digest_knows_the_bytes_of_the_files_and_not_their_names(tiny: Manifest):
    files = tiny.variants[0].files
    renamed = tuple(replace(file, path=f"my-{file.path}", url=None) for file in files)
    other_bytes = (files[0], replace(files[1], sha384="fed"))
    assert tiny.digest(renamed) == tiny.digest(files)
    assert tiny.digest(other_bytes) != tiny.digest(files)


def test_the_default_network_ships_with_its_int8_variant_first():
    default = next(manifest for manifest in known_manifests() if manifest.name == DEFAULT_MODEL)
    assert [variant.name for variant in default.variants] == ["FP16-INT8", "FP16", "FP32"]


def test_shipped_manifests_can_be_fetched_and_verified():
    for manifest in known_manifests():
        for file in (file for variant in manifest.variants for file in variant.files):
            assert re.fullmatch(r"[0-9a-f]{96}", file.sha384), file
            assert file.url is not None
            assert re.fullmatch(rf"https://.*/{re.escape(file.path)}", file.url), file


def test_shipped_manifests_have_names_of_their_own():
    names = [manifest.name for manifest in known_manifests()]
    assert sorted(set(names)) == names
