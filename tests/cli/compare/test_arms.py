"""Names of a comparison's arms."""

import pytest

from mimcl.cli.compare.arms import arm, arms
from mimcl.cli.config import Config, override
from mimcl.cli.errors import ConfigError

NONE = {"curriculum.name": "none"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uniform", NONE | {"curriculum.uniform": "replacement"}),
        ("epochs", NONE | {"curriculum.uniform": "epochs"}),
        ("proto", {"curriculum.name": "proto"}),
        ("anti", {"curriculum.name": "anti"}),
        ("subset+green", {"curriculum.name": "subset", "masking.name": "green"}),
        ("proto+hpm", {"curriculum.name": "proto", "masking.name": "hard-patches"}),
        ("proto+hard-patches", {"curriculum.name": "proto", "masking.name": "hard-patches"}),
        ("epochs+cl-mae", NONE | {"curriculum.uniform": "epochs", "masking.name": "learned"}),
        (
            "anti+block+linear",
            {"curriculum.name": "anti", "masking.name": "block", "curriculum.temp_schedule": "linear"},
        ),
        (
            "proto+learned-temperature+learned-masks",
            {"curriculum.name": "proto", "curriculum.temp_schedule": "learned", "masking.name": "learned"},
        ),
        ("epochs+efficient", NONE | {"curriculum.uniform": "epochs", "curriculum.resolution": "efficient"}),
        ("proto+cross", {"curriculum.name": "proto", "model.decoder": "cross", "model.predict_share": 0.25}),
        (
            "proto+green+efficient+cross",
            {
                "curriculum.name": "proto",
                "masking.name": "green",
                "curriculum.resolution": "efficient",
                "model.decoder": "cross",
                "model.predict_share": 0.25,
            },
        ),
        ("anti+balance", {"curriculum.name": "anti", "curriculum.balance": True}),
        (
            "uniform+systematic",
            NONE | {"curriculum.uniform": "replacement", "curriculum.resampling": "systematic"},
        ),
    ],
)
def test_an_arm_is_its_settings(name, settings):
    assert arm(name) == settings
    override(Config(), settings)  # which the configuration knows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot", "did you mean proto"),
        ("hpm", "uniform, epochs, proto, anti"),
        ("", "uniform, epochs, proto, anti"),
        ("proto+hpn", "did you mean hpm"),
        ("proto+cosin", "cosine"),
        ("proto+", "random, block"),
        ("proto+learned", "learned-masks"),
        ("proto+anti", "'anti'"),
        ("proto+hpm+block", "'block'"),
        ("proto+linear+cosine", "'cosine'"),
        ("uniform+linear", "linear has no effect"),
        ("epochs+systematic", "systematic has no effect"),
        ("uniform+balance", "balance has no effect"),
        ("epochs+balance", "balance has no effect"),
        ("subset+balance", "balance has no effect with subset"),
        ("proto+balance+balance", "'balance' conflicts"),
        ("proto+cross+hpm+cross", "'cross' conflicts"),
        ("proto+cros", "did you mean cross"),
        ("proto,anti,proto", "arms proto and proto "),
        ("proto+hpm,proto+hard-patches", "arms proto+hpm and proto+hard-patches "),
        ("proto,", "uniform, epochs, proto, anti"),
    ],
)
def test_a_bad_arm_is_an_error(text, message):
    with pytest.raises(ConfigError) as error:
        arms(text)
    assert message in str(error.value)


def test_arms_keep_their_order():
    assert list(arms("proto+hpm, uniform,anti")) == ["proto+hpm", "uniform", "anti"]
