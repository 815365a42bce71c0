"""The loader for other training loops: its draws are those of training, its state is exact, its errors are lines."""

import io
import threading

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png, flip_byte
from helpers.images import write_classes
from torchvision.transforms import v2

from mimcl.api import Curriculum, Loader
from mimcl.cli.config import Config, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.cli.run.training_data import TrainingData
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

SIZES = {"batch_size": 12, "image_size": 16, "decoder": "reference"}


def packed(home, classes):
    write_classes(home / "images", classes)
    pack(image_folder(home / "images"), home / "shards", PackConfig(), on_progress=lambda count: None)
    return home / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    shards = packed(tmp_path_factory.mktemp("loader"), {"a": 25, "b": 15, "c": 10})
    build(shards, BuildConfig(features="pixels", k=3, decoder="reference"))
    return shards


def loader(root, **how):
    return Loader(root, **(SIZES | how))


def drawn(batches) -> list[int]:
    return torch.cat([batch.sample_ids for batch in batches]).tolist()


def scores(seed=0):
    return np.random.default_rng(seed).normal(size=50)


@pytest.mark.parametrize("name", ["none", "proto", "anti"])
def test_its_draws_are_those_of_training(shards, name):
    keys = {"data.root": str(shards), "data.batch_size": 12, "curriculum.name": name, "trainer.epochs": 5, "seed": 3}
    config = override(Config(), keys | {"curriculum.order": "random"})
    plan = TrainingData.open(config).plan(config)
    expected = np.concatenate([plan.window(number).sample_ids for number in range(plan.windows)])
    found = list(loader(shards, curriculum=name, epochs=5, seed=3))
    assert drawn(found) == expected.tolist()
    assert torch.cat([batch.draws for batch in found]).tolist() == list(range(252))
    assert [batch.step for batch in found] == list(range(21))
    temperatures = {batch.temperature for batch in found}
    assert temperatures == {plan.window(number).temperature for number in range(plan.windows)}


def test_a_batch_has_images_labels_keys_distances_and_numbers(shards):
    batches = loader(shards, curriculum="proto", epochs=2)
    batch = next(iter(batches))
    assert batch.images.device == batches.device
    index = ShardIndex.load(shards)
    assert batch.images.shape == (12, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == index.label[batch.sample_ids].tolist()
    assert len({*batch.keys.tolist()}) == 12
    assert ((batch.distances >= 0) & (batch.distances <= 1)).all()
    assert batch.effective_fraction == pytest.approx(0.15, abs=0.02)


def test_crops_grow_over_the_run_and_stay_the_same_draws(shards):
    growing = Curriculum("proto", resolution="8:0.5,16", order="random")
    whole = list(loader(shards, curriculum="proto", epochs=2, seed=3, views=2))
    first = loader(shards, curriculum=growing, epochs=2, seed=3, views=2)
    found = [batch for _, batch in zip(range(5), first, strict=False)]
    state = first.state_dict()
    resumed = loader(shards, curriculum=growing, epochs=2, seed=3, views=2)
    resumed.load_state_dict(state)
    found = found[: state["draw"] // 12] + list(resumed)
    assert drawn(found) == drawn(whole)
    assert [batch.images.shape[-1] for batch in found] == [8] * 5 + [16] * 4
    assert torch.equal(found[-1].images, whole[-1].images)


def test_its_length_is_that_of_the_run(shards):
    assert len(loader(shards, epochs=3)) == 13 == len(list(loader(shards, epochs=3)))
    with pytest.raises(TypeError, match="give it epochs"):
        len(loader(shards))


def test_without_epochs_it_goes_on_and_each_pass_has_every_image_once(shards):
    batches = iter(loader(shards))
    ids = drawn(next(batches) for _ in range(25))
    assert [sorted(ids[start : start + 50]) for start in range(0, 300, 50)] == [list(range(50))] * 6


def test_a_loop_that_is_left_goes_on_where_it_was(shards):
    whole, parts = drawn(loader(shards, epochs=3)), loader(shards, epochs=3)
    found = []
    for batch in parts:
        found += batch.sample_ids.tolist()
        if len(found) == 60:
            break
    assert found + drawn(parts) == whole
    assert drawn_or_nothing(parts) == []


def drawn_or_nothing(batches) -> list[int]:
    return [sample_id for batch in batches for sample_id in batch.sample_ids.tolist()]


def test_a_second_iteration_ends_the_first_and_goes_on_where_it_was(shards):
    whole, two = drawn(loader(shards, epochs=3)), loader(shards, epochs=3)
    first = iter(two)
    found = drawn([next(first), next(first)])
    second = iter(two)
    found += drawn([next(second)])
    assert list(first) == []
    assert found + drawn(second) == whole


def test_a_state_that_is_loaded_in_a_loop_ends_it(shards):
    batches = loader(shards, epochs=3)
    start, taken = batches.state_dict(), 0
    for _ in batches:
        taken += 1
        if taken == 4:
            batches.load_state_dict(start)
    assert taken == 4
    assert drawn(batches) == drawn(loader(shards, epochs=3))


def test_no_thread_is_left_when_a_loop_ends(shards):
    before = {thread.name for thread in threading.enumerate()}
    for _ in loader(shards):
        break
    left = {thread.name for thread in threading.enumerate()} - before
    assert not {name for name in left if not name.startswith("decode")}, left


@pytest.mark.parametrize("how", [{}, {"curriculum": "proto"}, {"scores": scores()}], ids=["none", "proto", "scores"])
def test_a_state_continues_on_any_number_of_processes(shards, how):
    whole = list(loader(shards, epochs=3, **how))
    begun = loader(shards, epochs=3, **how)
    for _, _ in zip(range(5), begun, strict=False):
        pass
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["draw"] == 60
    for size in (1, 2, 3, 5):
        ranks = [loader(shards, epochs=3, rank=rank, world_size=size, **how) for rank in range(size)]
        for rank in ranks:
            rank.load_state_dict(state)
        for expected, parts in zip(whole[5:], zip(*ranks, strict=True), strict=True):
            assert {part.step for part in parts} == {expected.step}
            for name in ("sample_ids", "keys", "images", "distances"):
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined.nan_to_num(), getattr(expected, name).nan_to_num())


def test_views_are_independent_and_the_first_is_that_of_a_single_view(shards):
    one, three = loader(shards, epochs=2, seed=4), loader(shards, epochs=2, seed=4, views=3)
    for single, several in zip(one, three, strict=True):
        assert several.images.shape == (3, 12, 3, 16, 16)
        assert torch.equal(several.images[0], single.images)
        assert torch.equal(several.keys[0], single.keys)
        assert len({*several.keys.flatten().tolist()}) == 36
        differ = (several.images[0] != several.images[1]).flatten(1).any(1) & (
            several.images[1] != several.images[2]
        ).flatten(1).any(1)
        assert differ.all()


def test_views_are_the_same_for_any_rank(shards):
    whole = next(iter(loader(shards, views=2)))
    parts = [next(iter(loader(shards, views=2, rank=rank, world_size=2))) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.images for part in parts], 1), whole.images)
    assert torch.equal(torch.cat([part.keys for part in parts], 1), whole.keys)


def test_a_bad_image_is_replaced_in_all_views_and_named(tmp_path, capfd):
    write_classes(tmp_path / "images", {"a": 30})
    for place in range(6):
        (tmp_path / "images" / "a" / f"broken-{place}.png").write_bytes(broken_png(place))
    pack(image_folder(tmp_path / "images"), tmp_path / "shards", PackConfig(), on_progress=lambda count: None)
    flip_byte(ShardIndex.load(tmp_path / "shards"), 20)
    broken = {*range(30, 36), 20}
    two = list(loader(tmp_path / "shards", epochs=1, views=2))
    assert not {*drawn(two)} & broken
    singles = [
        list(loader(tmp_path / "shards", epochs=1)),
        two,
    ]
    for single, several in zip(*singles, strict=True):
        assert torch.equal(single.sample_ids, several.sample_ids)
        assert torch.equal(single.images, several.images[0])
        assert (several.images.float().flatten(2).std(2) > 0).all()
    assert "bad image 000000020 in train-000000.tar: its bytes do not match the index; draw" in capfd.readouterr().err


def test_more_bad_images_than_allowed_end_the_iteration(tmp_path):
    write_classes(tmp_path / "images", {"a": 30})
    for place in range(20):
        (tmp_path / "images" / "a" / f"broken-{place}.png").write_bytes(broken_png(place))
    pack(image_folder(tmp_path / "images"), tmp_path / "shards", PackConfig(), on_progress=lambda count: None)
    with pytest.raises(DataError, match=r"bad images in \d+ draws"):
        drawn(loader(tmp_path / "shards", epochs=2))


def test_normalised_images_are_floats_with_imagenets_mean_and_deviation(shards):
    raw, normal = (next(iter(loader(shards, normalize=normalize))).images for normalize in (False, True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(normal, (raw / 255 - mean) / std)


class TestTransform:
    RANDOM = v2.Compose([v2.ColorJitter(0.4, 0.4), v2.RandomErasing(p=1.0)])

    def test_it_repeats_exactly_and_leaves_the_global_generator_alone(self, shards):
        torch.manual_seed(5)
        undisturbed = torch.rand(3)
        torch.manual_seed(5)
        first = [batch.images for batch in loader(shards, epochs=1, transform=self.RANDOM)]
        assert torch.equal(torch.rand(3), undisturbed)
        again = [batch.images for batch in loader(shards, epochs=1, transform=self.RANDOM)]
        plain = [batch.images for batch in loader(shards, epochs=1)]
        for a, b, c in zip(first, again, plain, strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)

    def test_it_repeats_exactly_after_a_resume(self, shards):
        whole, resumed = (loader(shards, epochs=1, transform=self.RANDOM, views=2) for _ in range(2))
        state, last = None, None
        for number, batch in enumerate(whole):
            last = batch.images
            if number == 2:
                state = whole.state_dict()
        resumed.load_state_dict(state)
        *_, end = resumed
        assert torch.equal(end.images, last)
        assert not torch.equal(end.images[0], end.images[1])

    def test_it_may_change_the_shape_of_images_but_not_their_number(self, shards):
        small = next(iter(loader(shards, transform=lambda images: images.float()[..., ::2, ::2], normalize=True)))
        assert small.images.shape == (12, 3, 8, 8)
        for wrong in (lambda images: images[1:], lambda images: None, lambda images: images.sum()):
            with pytest.raises(ConfigError, match="transform returned .* for 12 images"):
                next(iter(loader(shards, transform=wrong)))


class TestScores:
    def test_low_scores_are_drawn_first_and_high_ones_with_anti(self, shards):
        rank = np.arange(50)
        for curriculum, low in ((None, True), ("anti", False)):
            batches = list(loader(shards, scores=rank * 7.0 - 9, curriculum=curriculum, epochs=4))
            early = np.mean(drawn(batches[:4]))
            assert (early < 10) if low else (early > 40)
            assert np.mean(drawn(batches[-4:])) == pytest.approx(24.5, abs=8)

    def test_distances_are_the_scaled_scores(self, shards):
        batch = next(iter(loader(shards, scores=np.arange(50), epochs=1)))
        torch.testing.assert_close(batch.distances, batch.sample_ids / 49, check_dtype=False)

    def test_a_change_takes_effect_in_the_window_after_the_next(self, shards):
        still, moved = (loader(shards, scores=scores(), epochs=20) for _ in range(2))
        ids, window = drawn(still), 48
        found = []
        for batch in moved:
            found += batch.sample_ids.tolist()
            if len(found) == 60:  # in window 1
                moved.set_scores(-scores())
        assert found[: 3 * window] == ids[: 3 * window]
        assert found[3 * window : 4 * window] != ids[3 * window : 4 * window]

    def test_gpu_or_host_tensors_lists_and_arrays_will_do(self, shards):
        moving = loader(shards, scores=torch.tensor(scores()), epochs=1)
        batch = next(iter(moving))
        moving.update_scores(batch.sample_ids, torch.rand(12, requires_grad=True))
        moving.update_scores([0, 1], [2, 3])
        moving.set_scores(scores().tolist())

    def test_what_is_wrong_with_scores_is_said(self, shards):
        for wrong, message in (
            (scores()[1:], "one for each of 50 images"),
            (np.where(scores() > 1, np.nan, scores()), "must be finite"),
            (np.ones(50), "all scores are equal"),
            (["x"] * 50, "they must be numbers"),
        ):
            with pytest.raises(ConfigError, match=message):
                loader(shards, scores=wrong, epochs=1)
            with pytest.raises(ConfigError, match=message):
                loader(shards, scores=scores(), epochs=1).set_scores(wrong)
        moving = loader(shards, scores=scores(), epochs=1)
        for ids, message in (([50], "sample id 50 is unknown"), ([0.5], "whole numbers"), ([1, 2], "as many scores")):
            with pytest.raises(ConfigError, match=message):
                moving.update_scores(ids, [1.0])
        with pytest.raises(ConfigError, match="scores are None"):
            moving.set_scores(None)
        with pytest.raises(ConfigError, match="no scores to change"):
            loader(shards).set_scores(scores())


class TestSchedules:
    def test_a_function_sets_the_effective_fraction_or_the_temperature(self, shards):
        how = {"curriculum": "proto", "epochs": 8}
        fractions = [b.effective_fraction for b in loader(shards, schedule=lambda t: 0.2 + t / 5, **how)]
        assert fractions[0] == pytest.approx(0.2, abs=1e-3)
        assert fractions[-1] > 0.35
        taus = [b.temperature for b in loader(shards, temperature=lambda t: 0.1 + t, **how)]
        assert taus[0] == 0.1
        assert taus == sorted(taus)
        assert next(iter(loader(shards, temperature=0.3, **how))).temperature == 0.3

    def test_a_constant_temperature_needs_no_epochs(self, shards):
        assert next(iter(loader(shards, curriculum="proto", temperature=0.3))).temperature == 0.3

    def test_a_function_that_gives_nonsense_is_an_error(self, shards):
        for how, message in (
            ({"schedule": lambda t: 0}, "the schedule gives 0 at progress 0"),
            ({"temperature": lambda t: -1}, "temperature -1 at progress 0"),
        ):
            with pytest.raises(ValueError, match=message):
                next(iter(loader(shards, curriculum="proto", epochs=1, **how)))

    def test_a_curriculum_has_all_settings(self, shards):
        settings = Curriculum("anti", temp_schedule="linear", r0=0.3, resampling="systematic", balance=True)
        batches = list(loader(shards, curriculum=settings, epochs=6))
        assert batches[0].effective_fraction == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "its seed is 0, here it is 1"),
        ({"batch_size": 6}, "its batch_size is 12, here it is 6"),
        ({"epochs": 4}, "its draws is 156, here it is 204"),
        ({"schedule": "linear"}, 'its curriculum.temp_schedule is "cosine", here it is "linear"'),
        ({"schedule": lambda t: 0.2}, "its schedule is"),
        ({"curriculum": "anti"}, 'its curriculum.name is "proto", here it is "anti"'),
        ({"scores": scores()}, "its prototype set is"),
        ({"root": "other"}, "its data is"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(shards, tmp_path, change, message):
    how = {"curriculum": "proto", "epochs": 3}
    other = {"root": shards} | how | change
    if change.get("root"):
        other["root"] = packed(tmp_path, {"a": 50})
        build(other["root"], BuildConfig(features="pixels", k=3, decoder="reference"))
    begun, wrong = loader(shards, **how), loader(**other)
    next(iter(begun))
    with pytest.raises(ConfigError) as refused:
        wrong.load_state_dict(begun.state_dict())
    assert message in str(refused.value)
    assert wrong.state_dict()["draw"] == 0


@pytest.mark.parametrize("state", [{}, None, {"draw": 3}, {"format": "mimcl-loader/2"}, {"format": "mimcl-loader/1"}])
def test_what_is_no_state_is_refused(shards, state):
    with pytest.raises(ConfigError, match="not the state of a Loader"):
        loader(shards).load_state_dict(state)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"views": 0}, "views is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0; it must be above 0"),
        ({"curriculum": Curriculum("none", resolution="8:0.5,16")}, "give epochs"),
        ({"curriculum": Curriculum("none", resolution="8:0.5,32"), "epochs": 1}, "must end with data.image_size (16)"),
        ({"curriculum": "prot"}, "curriculum is 'prot'; choose one of none, proto, anti"),
        ({"curriculum": "proto"}, "give epochs"),
        ({"curriculum": Curriculum("proto", temp_schedule="constant"), "schedule": lambda t: 0.2}, "give epochs"),
        ({"schedule": "linear", "epochs": 1}, "curriculum is 'none'"),
        ({"curriculum": Curriculum("none", balance=True)}, "curriculum is 'none', with which balance has no effect"),
        ({"curriculum": "proto", "epochs": 1, "schedule": "lin"}, "curriculum.temp_schedule is 'lin'"),
        ({"curriculum": "proto", "epochs": 1, "schedule": "learned"}, "needs mimcl's trainer"),
        ({"curriculum": "proto", "epochs": 1, "schedule": "linear", "temperature": 1}, "two ways"),
        ({"decoder": "jpeg"}, "decoder is 'jpeg'; choose one of auto"),
        ({"order": "sorted"}, "curriculum.order is 'sorted'"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to 1"),
        ({"world_size": 13}, "fewer draws than the 13 processes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(shards, how, message):
    with pytest.raises(ConfigError) as refused:
        loader(shards, **how)
    assert message in str(refused.value)


def test_the_order_of_the_shards_draws_the_same_images(tmp_path):
    shards = packed(tmp_path, {"a": 60})
    random, by_shard = (drawn(loader(shards, epochs=2, order=order)) for order in ("random", "shard"))
    assert random != by_shard
    assert [sorted(random[:48]), sorted(random[48:96])] == [sorted(by_shard[:48]), sorted(by_shard[48:96])]
