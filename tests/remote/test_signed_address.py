"""When signed addresses expire, by the query parameters of several clouds."""

import base64
import json
import time
from email.utils import formatdate

import pytest

from mimcl.pipeline.remote.signed_address import expiry_of, signed_address

NOW, LATER = 1_700_000_000, 1_700_003_600
AMZ = "X-Amz-Date=20231114T221320Z&X-Amz-Expires=3600&X-Amz-Signature=ab"  # of NOW


def policy(**content):
    text = base64.b64encode(json.dumps(content, separators=(",", ":")).encode()).decode()
    return text.translate(str.maketrans("+=/", "-_~"))


def condition(epoch):
    return policy(
        Statement=[{"Condition": {"DateLessThan": {"AWS:EpochTime": epoch}}, "Resource": "https://c/x?y=~+>>"}]
    )


@pytest.mark.parametrize(
    ("query", "expires"),
    [
        ("", None),
        ("Signature=ab&filename=expires", None),
        ("Expires=soon", None),
        ("Policy=!!!", None),
        (f"Policy={policy(Statement=[])}", None),
        (f"Expires={LATER}&Signature=ab&Key-Pair-Id=K", LATER),
        (f"expires={LATER}", LATER),
        (AMZ, LATER),
        (AMZ.replace("Amz", "Goog"), LATER),
        ("X-Amz-Expires=600", NOW + 600),
        (f"Policy={condition(LATER)}&Signature=ab&Key-Pair-Id=K", LATER),
        (f"exp={LATER}&sig=ab", LATER),
        (f"hdnts=exp={LATER}~acl=/*~hmac=ab", LATER),
        (f"hdnts=exp%3D{LATER}~acl%3D%2F*~hmac%3Dab", LATER),
        ("se=2023-11-14T23%3A13%3A20Z&sig=ab", LATER),
        (f"{AMZ}&Expires={LATER - 60}&Policy={condition(LATER + 60)}", LATER - 60),  # the earliest
    ],
)
def test_expiry(query, expires):
    assert expiry_of(f"https://cdn.example/path/x.tar?{query}", NOW) == expires


@pytest.mark.parametrize("ahead_s", [-7200, 0, 7200])
def test_a_wrong_clock_does_not_change_the_lifetime(ahead_s):
    sent = int(time.time()) + ahead_s
    address = signed_address(f"https://cdn/x?Expires={sent + 3600}", {"Date": formatdate(sent, usegmt=True)})
    assert address.expires - time.time() == pytest.approx(3540, abs=5)  # a minute before the end


@pytest.mark.parametrize("query", ["", "Expires=1", "Expires=99"])
def test_an_unknown_expiry_is_a_few_minutes(query):
    assert 200 < signed_address(f"https://cdn/x?{query}", {}).expires - time.time() < 300


def test_short_lives_keep_a_tenth_as_margin():
    address = signed_address(f"https://cdn/x?Expires={int(time.time()) + 10}", {})
    assert 7 < address.expires - time.time() < 9.5
