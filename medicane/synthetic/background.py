"""The weather that the storms of the idealised sea move through: season, jet, random waves.

Random fields are Gaussian with a prescribed spectrum (Nastrom and Gage 1985, JAS 42, 950): the
one-dimensional spectra of kinetic energy and of temperature fall as k⁻³ above a wavelength of
500 km and as k^(−5/3) below. Each wave is an AR(1) process in time, remembered the longer the
larger it is, and drifts with the steering flow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from medicane import names
from medicane.synthetic import vortex

Field = NDArray[np.float32]

#: Kilometres in a degree of latitude.
DEGREE_KM = 111.195
#: Wavelengths (km): the largest waves, where k⁻³ turns into k^(−5/3), where damping begins.
LARGEST_KM, TURN_KM, DAMPED_KM = 3500.0, 500.0, 80.0
#: Memory (h) of a wave of 500 km; it grows as the wavelength to the power 2/3 (eddy turnover).
MEMORY_HOURS = 8.0
#: Standard deviations (m): 1000 hPa height, 900–600 hPa thickness, 600–300 hPa thickness.
HEIGHT_STD, LOWER_STD, UPPER_STD = 18.0, 42.0, 47.0
#: Correlation of the two thicknesses, and growth of the deep waves from the surface to 300 hPa.
LAYER_CORRELATION, DEEP_GROWTH = 0.3, 0.6
#: Steering flow (m s-1), east and north.
STEERING = (6.0, 0.0)
#: 10 m wind over geostrophic or gradient wind, and its turn towards low pressure (degrees).
FRICTION, INFLOW_DEG = 0.75, 20.0


class Climate(NamedTuple):
    """Surface temperature T(day, latitude) and the heights that follow from it hydrostatically."""

    mean: float = 288.0
    season: float = 8.0
    warmest_day: float = 225.0
    jet: float = 0.2
    jet_season: float = 0.1
    lapse_rate: float = 6.5

    def temperature(self, day: NDArray[np.floating], latitude: NDArray[np.floating]) -> Field:
        """Surface temperature (K), shape (time, latitude): the season, and a jet's gradient."""
        phase = np.cos(2 * np.pi * (np.asarray(day)[:, None] - self.warmest_day) / 365.25)
        gradient = self.jet - self.jet_season * phase
        distance = 8 * np.tanh((np.asarray(latitude)[None] - 40) / 8)
        return (self.mean + self.season * phase - gradient * distance).astype(np.float32)

    def heights(self, surface_temperature: Field) -> Field:
        """Heights (m) of the levels, shape (…, level), for surface temperatures of shape (…)."""
        exponent = vortex.GAS_CONSTANT * self.lapse_rate * 1e-3 / names.G0
        ratio = np.array(names.PHASE_SPACE_LEVELS) / vortex.SEA_PRESSURE
        per_kelvin = (1 - ratio**exponent) / (self.lapse_rate * 1e-3)
        return surface_temperature[..., None] * per_kelvin.astype(np.float32)


class Maps(NamedTuple):
    """Fields on (time[, level], latitude, longitude): Pa, m s-1, m s-1, m."""

    msl: Field
    u10: Field
    v10: Field
    zg: Field


def amplitudes(
    wavenumber: NDArray[np.floating], *, one_dimensional_slope_of: str = "wind"
) -> NDArray[np.floating]:
    """Amplitude of each wave, up to a constant: the root of its two-dimensional power.

    Parameters
    ----------
    wavenumber
        k, km-1, any shape; 0 gets no amplitude.
    one_dimensional_slope_of
        ``wind``: of a streamfunction whose kinetic energy E(k) has the two slopes, so its own
        power per unit of k-plane is E/k³; ``scalar``: of a temperature (or thickness) with
        them: E/k.
    """
    k = np.where(wavenumber > 0, wavenumber, np.inf)
    turn = 2 * np.pi / TURN_KM
    # Below the largest waves the spectrum is flat instead of infinite.
    capped = np.maximum(k, 2 * np.pi / LARGEST_KM)
    energy = np.where(capped < turn, (capped / turn) ** -3, (capped / turn) ** (-5 / 3))
    power = energy / capped ** (3 if one_dimensional_slope_of == "wind" else 1)
    # What a model of this resolution no longer carries: no noise from point to point.
    damping = np.exp(-((wavenumber * DAMPED_KM / 2 / np.pi) ** 4))
    return np.where(np.isfinite(k), np.sqrt(power) * damping, 0.0)


class Background:
    """A random sea state that advances map by map; its memory is a few arrays of wave amplitudes.

    Parameters
    ----------
    latitude, longitude
        Grid, degrees, latitude descending.
    step_hours
        Distance of two maps.
    rng
        Source of randomness: the same generator state gives the same maps.
    strength
        Factor on all random waves; 0 leaves season and jet alone.
    """

    def __init__(
        self,
        latitude: NDArray[np.floating],
        longitude: NDArray[np.floating],
        *,
        step_hours: float,
        rng: np.random.Generator,
        strength: float = 1.0,
        climate: Climate | None = None,
    ) -> None:
        self.latitude, self.longitude = latitude, longitude
        self.climate = Climate() if climate is None else climate
        self._rng = rng
        degrees = float(abs(latitude[1] - latitude[0]))
        self.dy = degrees * DEGREE_KM
        self.dx = self.dy * float(np.cos(np.deg2rad(latitude.mean())))
        # Periodic, and wider than the map by about 1,000 km, so that opposite edges are strangers.
        margin = round(10 / degrees)
        self.shape = (
            fft.next_fast_len(latitude.size + margin, real=True),
            fft.next_fast_len(longitude.size + margin, real=True),
        )
        ky = 2 * np.pi * fft.fftfreq(self.shape[0], self.dy)[:, None]
        kx = 2 * np.pi * fft.rfftfreq(self.shape[1], self.dx)[None]
        k = np.hypot(kx, ky)
        wind, scalar = amplitudes(k), amplitudes(k, one_dimensional_slope_of="scalar")
        # Columns without a mirror image lose half their variance in the real transform.
        alone = np.ones(kx.size)
        alone[0] = np.sqrt(2)
        stds = (HEIGHT_STD, LOWER_STD, UPPER_STD)
        self._amplitude = np.stack(
            [
                strength * std * a * alone / _field_std(a)
                for std, a in zip(stds, (wind, scalar, scalar), strict=True)
            ]
        ).astype(np.float32)
        memory = MEMORY_HOURS * (np.maximum(k, 2 * np.pi / 10 * 1e-3) * TURN_KM / 2 / np.pi) ** (
            -2 / 3
        )
        keep = np.exp(-step_hours / memory)
        self._fresh = (self._amplitude * np.sqrt(1 - keep**2)).astype(np.float32)
        # Rows run from north to south: a northward drift moves towards lower row numbers.
        drift = (kx * STEERING[0] - ky * STEERING[1]) * step_hours * 3.6
        self._propagate = (keep * np.exp(-1j * drift)).astype(np.complex64)
        self._state = self._amplitude * self._noise()

    def _noise(self) -> NDArray[np.complex64]:
        parts = self._rng.standard_normal((*self._amplitude.shape, 2), dtype=np.float32)
        return parts.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))

    def waves(self, n: int) -> Field:
        """The next n states (n, 3, latitude, longitude): Z1000, lower and upper thickness, m."""
        out = np.empty((n, 3, self.latitude.size, self.longitude.size), np.float32)
        for i in range(n):
            full = fft.irfft2(self._state, s=self.shape, norm="forward", axes=(1, 2))
            out[i] = full[:, : self.latitude.size, : self.longitude.size]
            self._state = self._propagate * self._state + self._fresh * self._noise()
        lower, upper = out[:, 1], out[:, 2]
        upper *= np.float32(np.sqrt(1 - LAYER_CORRELATION**2))
        upper += np.float32(LAYER_CORRELATION * UPPER_STD / LOWER_STD) * lower
        return out

    def maps(self, day_of_year: NDArray[np.floating]) -> Maps:
        """The next maps, one for each day of the year (a fraction tells the hour)."""
        wave = self.waves(len(day_of_year))
        log_p = np.log(vortex.SEA_PRESSURE / np.array(names.PHASE_SPACE_LEVELS))
        deep = 1 + DEEP_GROWTH * log_p / log_p[-1]
        lower = vortex.shear_shape(names.PHASE_SPACE_LEVELS)
        upper = np.clip(np.log(600 / np.array(names.PHASE_SPACE_LEVELS)) / np.log(600 / 300), 0, 1)
        mix = np.stack([deep, lower, upper], axis=1).astype(np.float32)  # (level, wave)
        n, _, rows, columns = wave.shape
        zg = (mix @ wave.reshape(n, 3, -1)).reshape(n, -1, rows, columns)
        surface = self.climate.temperature(day_of_year, self.latitude)
        zg += self.climate.heights(surface).transpose(0, 2, 1)[..., None]
        msl = wave[:, 0] * np.float32(vortex.SEA_DENSITY * names.G0)
        u10, v10 = self._surface_wind(msl)
        return Maps(msl + np.float32(vortex.SEA_PRESSURE * 100), u10, v10, zg)

    def _surface_wind(self, msl: Field) -> tuple[Field, Field]:
        """Geostrophic wind of the pressure waves, slowed and turned by friction, plus steering."""
        f = vortex.coriolis(self.latitude)[:, None]
        scale = (1 / (vortex.SEA_DENSITY * f)).astype(np.float32)
        south = np.gradient(msl, np.float32(self.dy * 1e3), axis=1)
        east = np.gradient(msl, np.float32(self.dx * 1e3), axis=2)
        u, v = scale * south, scale * east  # −∂p/∂y: rows run southwards
        cos, sin = (np.float32(g(np.deg2rad(INFLOW_DEG)) * FRICTION) for g in (np.cos, np.sin))
        u10 = cos * u - sin * v + np.float32(0.3 * STEERING[0])
        return u10.astype(np.float32), (sin * u + cos * v).astype(np.float32)


def _field_std(amplitude: NDArray[np.floating]) -> float:
    """Standard deviation of the real field whose half-plane amplitudes these are."""
    weight = np.full(amplitude.shape[1], 2.0)
    weight[0] = 1.0
    return float(np.sqrt((weight * amplitude**2).sum()))
