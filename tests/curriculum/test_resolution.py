"""The resolution curriculum: sides by draw, what a text may say, and the published schedule."""

import pytest

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.resolution import Stage, resolution


def stages(text, image_size=224, patch_size=16, draws=1000, batch_size=10):
    return resolution(text, image_size, patch_size, draws, batch_size).stages


def test_shares_become_stages_of_whole_steps():
    assert stages("112:0.4,160:0.3,224") == (Stage(112, 0, 400), Stage(160, 400, 300), Stage(224, 700, 300))
    assert stages("112:0.4, 160:0.3, 224:0.3") == stages("112:0.4,160:0.3,224")
    assert stages("112:0.333,224") == (Stage(112, 0, 330), Stage(224, 330, 670))
    assert stages(None) == stages("224") == (Stage(224, 0, 1000),)
    assert stages("224:0.2,112:0.5,224") == (Stage(224, 0, 200), Stage(112, 200, 500), Stage(224, 700, 300))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 250_000])
def test_stages_cover_the_run_without_a_gap_and_without_empty_ones(steps):
    for text in ("efficient", "112:0.4,160:0.3,224"):
        found = stages(text, draws=steps * 64, batch_size=64)
        assert [stage.first_draw for stage in found[1:]] == [stage.first_draw + stage.draws for stage in found[:-1]]
        assert found[0].first_draw == 0
        assert found[-1].first_draw + found[-1].draws == steps * 64
        assert all(stage.draws > 0 and stage.draws % 64 == 0 for stage in found)


def test_the_side_depends_on_the_first_draw_of_the_step():
    plan = resolution("112:0.4,160:0.3,224", 224, 16, 1000, 10)
    assert [plan.side_at(draw) for draw in (0, 390, 400, 690, 700, 990)] == [112, 112, 160, 160, 224, 224]
    assert plan.sides == [112, 160, 224]
    assert plan.changes
    assert not resolution(None, 224, 16, 1000, 10).changes


@pytest.mark.parametrize(
    ("image_size", "patch_size", "sides"),
    [
        (224, 16, [96, 160, 192, 224]),
        (224, 14, [98, 154, 196, 224]),
        (64, 8, [24, 48, 56, 64]),
        (32, 4, [12, 24, 28, 32]),
    ],
)
def test_efficient_has_the_published_sides_as_shares_of_any_image_size(image_size, patch_size, sides):
    assert resolution("efficient", image_size, patch_size, 10_000, 10).sides == sides


def test_consecutive_stages_of_the_same_side_are_joined():
    rounded = resolution("efficient", 64, 16, 1_000, 10)
    assert [(stage.side, stage.draws) for stage in rounded.stages] == [(32, 460), (48, 460), (64, 80)]
    assert resolution("64:0.3,64", 64, 16, 1_000, 10) == resolution(None, 64, 16, 1_000, 10)


def test_efficient_spends_the_published_shares_of_the_compute():
    # 0.2, 0.4, 0.2 and 0.2 at 96, 160, 192 and 224 pixels, where the compute of a draw grows as its pixels.
    found = stages("efficient", draws=100_000)
    compute = [stage.draws * stage.side**2 for stage in found]
    assert [part / sum(compute) for part in compute] == pytest.approx([0.2, 0.4, 0.2, 0.2], abs=0.015)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write it like"),
        ("small", "write it like"),
        ("112:0.4:0.2,224", "write it like"),
        ("112.5:0.4,224", "write it like"),
        ("112:half,224", "write it like"),
        ("112:nan,224", "needs a share"),
        ("112,224", "needs a share"),
        ("112:0,224", "needs a share"),
        ("112:1,224", "needs a share"),
        ("112:-0.5,224", "needs a share"),
        ("0:0.5,224", "at least 1"),
        ("112:0.6,160:0.4,224", "leaves nothing"),
        ("112:0.4,224:0.4", "add up to 0.8"),
    ],
)
def test_texts_that_are_no_schedule_are_refused_with_the_configuration(text, words):
    with pytest.raises(ValueError, match=words):
        CurriculumConfig(resolution=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("100:0.4,224", "100, not a multiple of model.patch_size"),
        ("112:0.4,160", "must end with data.image_size .224."),
        ("256:0.4,224", "its largest side"),
        ("160", "give --image-size 160"),
    ],
)
def test_sides_must_fit_the_model(text, words):
    CurriculumConfig(resolution=text)
    with pytest.raises(ValueError, match=words):
        stages(text)
