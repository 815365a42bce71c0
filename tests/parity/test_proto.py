"""Temperature and effective fraction agree with the prototype curriculum's reference code."""

import numpy as np
import pytest

from mimcl.curriculum.temperature import EffectiveFraction, effective_fraction, p_tau


def test_temperature_of_a_fraction(golden):
    reference = golden("proto.npz")
    curve = EffectiveFraction(reference["distance"])
    ours = [curve.inverse(fraction) for fraction in reference["eff"]]
    # The last fraction, 0.63, lies where float32 cannot resolve the reference's own r: its search stops anywhere.
    np.testing.assert_allclose(ours[:-1], reference["tau"][:-1], rtol=0.01)
    assert reference["eff"][-1] == pytest.approx(0.63)
    assert curve(ours[-1]) == pytest.approx(0.63, abs=1e-6)


def test_fraction_of_a_temperature(golden):
    reference = golden("proto.npz")
    distance, curve = reference["distance"], EffectiveFraction(reference["distance"])
    exact = [effective_fraction(p_tau(distance, tau)) for tau in reference["grid_tau"]]
    np.testing.assert_allclose(exact, reference["grid_eff"], atol=1e-3, rtol=0)
    np.testing.assert_allclose([curve(tau) for tau in reference["grid_tau"]], reference["grid_eff"], atol=1e-3, rtol=0)
