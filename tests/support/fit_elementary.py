"""How the coefficients of elementary.cuh were made: python fit_elementary.py prints them.

Each is a polynomial of least greatest relative error, by the exchange of Remez in 60 digits,
then rounded to the nearest float or double.
"""

import sys

import mpmath as mp
import numpy as np

mp.mp.dps = 60


def remez(f, weight, low, high, degree, grid=1501, rounds=12):
    """The polynomial p of this degree with the least max |weight (f - p)| on [low, high]."""
    low, high = mp.mpf(low), mp.mpf(high)
    xs = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / grid) for i in range(grid + 1)]
    fs, ws = [f(x) for x in xs], [weight(x) for x in xs]
    nodes = [round(grid * i / (degree + 1)) for i in range(degree + 2)]
    for _ in range(rounds):
        a = mp.matrix(degree + 2, degree + 2)
        b = mp.matrix(degree + 2, 1)
        for row, i in enumerate(nodes):
            for k in range(degree + 1):
                a[row, k] = xs[i] ** k
            # At a zero of the weight any value will do.
            a[row, degree + 1] = (-1) ** row / (ws[i] if ws[i] else mp.mpf("1e-30"))
            b[row] = fs[i]
        solution = mp.lu_solve(a, b)
        c = [solution[k] for k in range(degree + 1)]
        error = [w * (y - mp.polyval(c[::-1], x)) for x, y, w in zip(xs, fs, ws, strict=False)]
        # One extremum from each run of equal signs; the largest degree + 2 in a row.
        peaks = []
        for i, e in enumerate(error):
            if e == 0:
                continue
            if peaks and (error[peaks[-1]] > 0) == (e > 0):
                if abs(e) > abs(error[peaks[-1]]):
                    peaks[-1] = i
            else:
                peaks.append(i)
        while len(peaks) > degree + 2:
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        if len(peaks) < degree + 2 or peaks == nodes:
            break
        nodes = peaks
    return c, max(abs(e) for e in error)


def show(name, fitted, dtype):
    c, error = fitted
    print(f"{name}: greatest relative error 2^{float(mp.log(error, 2)):.1f}")
    for x in c:
        y = dtype(float(x)) if dtype is np.float32 else float(x)
        print("  ", float(y).hex().replace("0000000p", "p") + ("f" if dtype is np.float32 else ""))
    sys.stdout.flush()


def exp_tail(r):  # (e^r - 1 - r) / r^2
    r = mp.mpf(r)
    return (mp.expm1(r) - r) / r**2 if abs(r) > 1e-12 else 0.5 + r / 6


def fit_exp(degree):
    edge = mp.log(2) / 2 * mp.mpf("1.0005")
    return remez(
        exp_tail, lambda r: r**2 / abs(mp.expm1(r)) if r else mp.mpf(0), -edge, edge, degree
    )


def fit_tanh(degree):  # (tanh(r) / r - 1) / z, z = r^2
    edge = mp.log(2) / 4 + mp.mpf(11) / 128 + mp.mpf("1e-4")

    def f(z):
        r = mp.sqrt(z)
        return (mp.tanh(r) / r - 1) / z if z > 1e-15 else -mp.mpf(1) / 3 + 2 * z / 15

    return remez(f, lambda z: z, 0, edge**2, degree)


def fit_log(degree):  # (log(1 + f) - f) / f^2
    return remez(
        lambda f: (mp.log1p(f) - f) / f**2 if abs(f) > 1e-12 else -0.5 + f / 3,
        lambda f: f**2 / abs(mp.log1p(f)) if f else mp.mpf(0),
        mp.sqrt(0.5) - 1 - 1e-7,
        mp.sqrt(2) - 1 + 1e-7,
        degree,
    )


def fit_log_by_quotient(degree):  # z = s^2, s = f / (2 + f): (log(1 + f) / s - 2) / z
    edge = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)

    def f(z):
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) / s - 2) / z if z > 1e-15 else mp.mpf(2) / 3 + 2 * z / 5

    return remez(f, lambda z: z / 2, 0, edge**2 * mp.mpf("1.0001"), degree)


def fit_erfc(k, end, degree, **options):
    """(a + k) / (2 k) e^(a^2) erfc(a) in w = (a - k) / (a + k), for a in [0, end]."""
    k, end = mp.mpf(k), mp.mpf(end)

    def f(w):
        a = k * (1 + w) / (1 - w)
        return (a + k) / (2 * k) * mp.exp(a * a) * mp.erfc(a)

    return remez(f, lambda w: 1 / f(w), -1, (end - k) / (end + k), degree, **options)


if __name__ == "__main__":
    show("exp_tail, float", fit_exp(4), np.float32)
    show("exp_tail, double", fit_exp(9), np.float64)
    show("tanh_tail, float", fit_tanh(2), np.float32)
    show("tanh_tail, double", fit_tanh(6), np.float64)
    show("log_tail, float", fit_log(8), np.float32)
    show("log_tail, double", fit_log_by_quotient(6), np.float64)
    show("erfc_factor, float", fit_erfc(3, 10.1, 9, grid=801), np.float32)
    show("erfc_factor, double", fit_erfc(3.5, 27.3, 21, grid=801), np.float64)
