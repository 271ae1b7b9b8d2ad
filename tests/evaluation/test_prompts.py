"""Prompts: the sets of the package, files of users, and names as words."""

from pathlib import Path

import pytest

from lightning_vl.errors import UserError
from lightning_vl.evaluation.prompts import (
    FOLDER,
    BareName,
    GivenTemplates,
    NamedTemplates,
    TemplateFile,
    known_sets,
    read_class_names,
    readable,
)

# templates of the released page for each of the paper's data sets, and of its notebook for ImageNet
COUNTS = {
    "food101": 1, "cifar10": 18, "cifar100": 18, "birdsnap": 1, "sun397": 2, "stanford_cars": 8, "fgvc_aircraft": 2,
    "voc2007": 1, "dtd": 8, "oxford_pets": 1, "caltech101": 34, "flowers102": 1, "mnist": 1, "fer2013": 6, "stl10": 2,
    "eurosat": 3, "resisc45": 18, "gtsrb": 3, "kitti": 1, "country211": 5, "pcam": 1, "ucf101": 48, "kinetics700": 28,
    "clevr_count": 1, "hateful_memes": 1, "rendered_sst2": 1, "imagenet": 80,
}  # fmt: skip
FORMS = {  # that are stated word by word
    "food101": "a photo of {}, a type of food.",
    "cifar10": "a blurry photo of a {}.",
    "birdsnap": "a photo of a {}, a type of bird.",
    "stanford_cars": "a photo of my {}.",
    "fgvc_aircraft": "a photo of the {}, a type of aircraft.",
    "voc2007": "a photo of a {}.",
    "dtd": "a photo of the {} pattern.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "caltech101": "a sketch of a {}.",
    "flowers102": "a photo of a {}, a type of flower.",
    "mnist": 'a photo of the number: "{}".',
    "fer2013": "a photo of a {} looking face.",
    "eurosat": "a centered satellite photo of {}.",
    "resisc45": "aerial imagery of the {}.",
    "gtsrb": 'a zoomed in photo of a "{}" traffic sign.',
    "kitti": "{}",
    "country211": "a photo i took in {}.",
    "pcam": "this is a photo of {}",
    "kinetics700": "a video of a person {}.",
    "clevr_count": "a photo of {} objects.",
    "hateful_memes": "a {}.",
    "rendered_sst2": "a {} review of a movie.",
    "imagenet": "itap of a {}.",
}


def test_the_papers_sets_have_as_many_templates_as_the_papers() -> None:
    """Breaks if a template is lost, doubled or added, or a form that is stated is misspelt."""
    assert {name: len(NamedTemplates(name).templates) for name in COUNTS} == COUNTS
    for name, form in FORMS.items():
        assert form in NamedTemplates(name).templates, name


@pytest.mark.parametrize("name", known_sets())
def test_every_set_can_be_used(name: str) -> None:
    """Breaks if a file has a line without a slot, twice the same line, or white space that would reach the tokenizer."""
    templates = NamedTemplates(name).templates
    assert len(set(templates)) == len(templates)
    for template in templates:
        assert template.count("{}") == 1
        assert template == " ".join(template.split())
    assert (FOLDER / f"{name}.txt").read_text().splitlines() == templates


def test_the_seven_are_within_the_eighty() -> None:
    """Breaks if `imagenet_7` is no longer the choice of seven out of the eighty that was found for it."""
    seven = NamedTemplates("imagenet_7").templates
    assert len(seven) == 7
    assert set(seven) < set(NamedTemplates("imagenet").templates)


def test_the_name_is_put_in_as_it_is() -> None:
    """Breaks if a name with braces, or a template with two slots, is taken for a format string."""
    templates = GivenTemplates(["a {}.", "{} and {}", "100 % {}, {kept}"])
    assert templates.texts("set {0}") == ["a set {0}.", "set {0} and set {0}", "100 % set {0}, {kept}"]
    assert BareName().texts("great grey owl") == ["great grey owl"]
    assert NamedTemplates("pcam").texts("tissue") == ["this is a photo of tissue"]


def test_files_of_users(tmp_path: Path) -> None:
    """Breaks if CLIP_benchmark's slot, its folder, a byte order mark or empty lines are not read."""
    file = tmp_path / "zeroshot_classification_templates.txt"
    file.write_text("\ufeffa photo of a {c}.\n\n a {c} café. \n", encoding="utf-8")
    assert TemplateFile(str(file)).texts("dog") == ["a photo of a dog.", "a dog café."]
    assert TemplateFile(str(tmp_path)).texts("dog") == ["a photo of a dog.", "a dog café."]
    (tmp_path / "classnames.txt").write_text("tabby cat\ngreat grey owl\n")
    assert read_class_names(str(tmp_path / "classnames.txt")) == ["tabby cat", "great grey owl"]


def test_what_cannot_be_used_is_said_in_two_lines(tmp_path: Path) -> None:
    """Breaks if a misspelt set, a template without a slot, an empty or absent file, or a class twice passes, or fails unclearly."""
    with pytest.raises(UserError) as error:
        NamedTemplates("imagenet7")
    assert "imagenet7" in error.value.what
    assert "'imagenet_7'" in error.value.how
    with pytest.raises(UserError, match="has no slot"):
        GivenTemplates(["a {}.", "a photo."])
    with pytest.raises(UserError, match="there is no template"):
        GivenTemplates([])
    for content, message in (
        ("", "there is no template"),
        ("a photo.\n", "has no slot"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ):
        file = tmp_path / "templates.txt"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message) as error:
            _ = TemplateFile(str(file)).templates
        assert str(file) in error.value.what
        assert "\n" not in error.value.what + error.value.how
    with pytest.raises(UserError, match="cannot be read"):
        _ = TemplateFile(str(tmp_path / "none.txt")).templates
    for content, message in (("", "is empty"), ("cat\ndog\ncat\n", "the class 'cat' twice")):
        file = tmp_path / "classnames.txt"
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_class_names(str(file))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apple_pie", "apple pie"),
        ("AnnualCrop", "annual crop"),
        ("CleanAndJerk", "clean and jerk"),
        ("Egyptian_Mau", "Egyptian Mau"),
        ("great grey owl", "great grey owl"),
        ("707-320", "707-320"),
        ("DC-10", "DC-10"),
        ("iPod", "iPod"),
        ("BMW 3 Series Sedan 2012", "BMW 3 Series Sedan 2012"),
        ("Forest", "Forest"),
        ("7", "7"),
        ("__car__side_", "car side"),
    ],
)
def test_names_become_words(name: str, words: str) -> None:
    """Breaks if a name reaches the text tower with underscores or glued words, or one that is words already is changed."""
    assert readable(name) == words


def test_the_released_names_of_imagenet_are_read(tmp_path: Path) -> None:
    """Breaks if the two names that stand twice in the released list make ImageNet a set that cannot be had."""
    open_clip = pytest.importorskip("open_clip")
    file = tmp_path / "classnames.txt"
    file.write_text("\n".join(open_clip.IMAGENET_CLASSNAMES) + "\n")
    names = read_class_names(str(file))
    assert len(set(names)) == 1000
    assert names[744] == "projectile"
    assert names[657] == "missile"
