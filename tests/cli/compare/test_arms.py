"""How arms of a comparison are named."""

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
        ("prot", "arm 'prot' begins with no data curriculum: 'prot'; did you mean proto"),
        ("hpm", "choose one of uniform, epochs, proto, anti"),
        ("", "choose one of uniform"),
        ("proto+hpn", "arm 'proto+hpn' has an unknown word: 'hpn'; did you mean hpm"),
        ("proto+cosin", "did you mean cosine"),
        ("proto+", "arm 'proto+' has an unknown word: ''; choose one of random, block"),
        ("proto+learned", "learned-masks (CL-MAE) or learned-temperature"),
        ("proto+anti", "two words of the kind of 'anti'"),
        ("proto+hpm+block", "two words of the kind of 'block'"),
        ("proto+linear+cosine", "two words of the kind of 'cosine'"),
        ("uniform+linear", "linear changes nothing without a curriculum"),
        ("epochs+systematic", "systematic changes nothing without a curriculum"),
        ("proto,anti,proto", "arms proto and proto are the same"),
        ("proto+hpm,proto+hard-patches", "arms proto+hpm and proto+hard-patches are the same"),
        ("proto,", "begins with no data curriculum"),
    ],
)
def test_what_is_no_arm_is_an_error_that_says_why(text, message):
    with pytest.raises(ConfigError) as error:
        arms(text)
    assert message in str(error.value)


def test_arms_keep_their_order():
    assert list(arms("proto+hpm, uniform,anti")) == ["proto+hpm", "uniform", "anti"]
