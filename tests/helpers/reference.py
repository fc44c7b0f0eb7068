"""Every metric as its equation reads, in loops, inverse square roots and singular values.

The twins of `lidar_cli.core`: slow, independent of it, and to be read beside the equations. Axes:
z[i, j] is the embedding [d] of view j of n x q; rows are [N, d]. numpy, float64, natural
logarithms.
"""

import itertools
import math

import numpy as np


def entropy(p):
    """- sum_k p_k log p_k, with 0 log 0 = 0."""
    return -sum(share * math.log(share) for share in p if share > 0)


def effective_rank(spectrum, epsilon):
    return math.exp(entropy([value / sum(spectrum) + epsilon for value in spectrum]))


def between(z):
    """Sb = 1/(n-1) sum_i (m_i - m)(m_i - m)^T."""
    n, _, d = z.shape
    class_means = [sum(views) / len(views) for views in z]
    mean = sum(class_means) / n
    total = np.zeros((d, d))
    for m_i in class_means:
        total += np.outer(m_i - mean, m_i - mean)
    return total / (n - 1)


def within(z):
    """W0 = 1/(n(q-1)) sum_ij (z_ij - m_i)(z_ij - m_i)^T."""
    n, q, d = z.shape
    total = np.zeros((d, d))
    for views in z:
        m_i = sum(views) / q
        total += (views - m_i).T @ (views - m_i)  # the sum over j of the outer products
    return total / (n * (q - 1))


def lda_spectrum(z, delta):
    """Eigenvalues of Sw^-1/2 Sb Sw^-1/2, Sw = W0 + delta I, largest first; negatives are 0."""
    values, vectors = np.linalg.eigh(within(z) + delta * np.eye(z.shape[2]))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return [max(value, 0.0) for value in np.linalg.eigvalsh(root @ between(z) @ root)[::-1]]


def lidar(z, delta, epsilon):
    return effective_rank(lda_spectrum(z, delta), epsilon)


def h(n, q, d):
    return 1 - (d + 1) / (n * (q - 1))


def noise_fraction(z, delta):
    n, q, d = z.shape
    return d / (q * h(n, q, d) * sum(lda_spectrum(z, delta)))


def edge(n, q, d):
    c1, c2 = d / (n - 1), d / (n * (q - 1))
    return (1 / q) * ((1 + math.sqrt(c1 + c2 - c1 * c2)) / (1 - c2)) ** 2


def n_above_noise(z, delta):
    limit = 1.1 * edge(*z.shape)
    return sum(1 for value in lda_spectrum(z, delta) if value > limit)


def largest_of_noise(n, q, d, point=2.0234):
    """Johnstone 2008: log(theta / (1 - theta)) of the largest root theta of B against A + B, with A
    of n (q - 1) and B of n - 1 degrees of freedom, is Tracy-Widom about mu with scale sigma."""
    a, b = n * (q - 1), n - 1
    gamma = 2 * math.asin(((min(d, b) - 1 / 2) / (a + b - 1)) ** (1 / 2))
    phi = 2 * math.asin(((max(d, b) - 1 / 2) / (a + b - 1)) ** (1 / 2))
    mu = 2 * math.log(math.tan((phi + gamma) / 2))
    cube = 16 / (a + b - 1) ** 2
    cube /= math.sin(phi + gamma) ** 2 * math.sin(phi) * math.sin(gamma)
    theta = 1 / (1 + math.exp(-(mu + point * cube ** (1 / 3))))
    return (theta / (1 - theta)) * (a / b) / q


def corrected(z, delta):
    """lambda^c_k = max(h lambda_k - 1/q, 0)."""
    n, q, d = z.shape
    return [max(h(n, q, d) * value - 1 / q, 0.0) for value in lda_spectrum(z, delta)]


def lidar_corrected(z, delta, epsilon):
    return effective_rank(corrected(z, delta), epsilon)


def reliabilities(z, delta):
    """rho_k = lambda^c_k / (1 + lambda^c_k)."""
    return [value / (1 + value) for value in corrected(z, delta)]


def pillai(z, delta):
    return sum(reliabilities(z, delta))


def information(z, delta):
    return sum(math.log(1 + value) for value in corrected(z, delta)) / 2


def reliable_rank(z, delta, epsilon):
    return effective_rank(reliabilities(z, delta), epsilon)


def rankme(rows, epsilon):
    """From the singular values themselves, not centred, k = 1 .. min(N, d)."""
    return effective_rank(list(np.linalg.svd(rows, compute_uv=False)), epsilon)


def rankme_augmented(z, epsilon):
    n, q, d = z.shape
    return rankme(z.reshape(n * q, d), epsilon)


def covariance_spectrum(rows):
    """Squared singular values of the centred rows over N - 1, largest first."""
    centred = rows - sum(rows) / len(rows)
    return [value**2 / (len(rows) - 1) for value in np.linalg.svd(centred, compute_uv=False)]


def alpha_req(rows, first=11, last=100):
    """(alpha, R2): weights 1/k, by the normal equations of log e_k = b - alpha log k."""
    return power_law(covariance_spectrum(rows), first, last)


def power_law(spectrum, first, last):
    ranks = range(first, last + 1)
    design = np.array([[1.0, math.log(k)] for k in ranks])
    target = np.array([math.log(spectrum[k - 1]) for k in ranks])
    weight = np.diag([1.0 / k for k in ranks])
    b, slope = np.linalg.solve(design.T @ weight @ design, design.T @ weight @ target)
    left = target - (b + slope * design[:, 1])
    spread = target - np.trace(weight @ np.diag(target)) / np.trace(weight)
    return -slope, 1 - (left @ weight @ left) / (spread @ weight @ spread)


def participation_ratio(rows):
    spectrum = covariance_spectrum(rows)
    return sum(spectrum) ** 2 / sum(value**2 for value in spectrum)


def stable_rank(rows):
    spectrum = covariance_spectrum(rows)
    return sum(spectrum) / spectrum[0]


def on_sphere(z):
    return z / np.sqrt((z**2).sum(axis=-1, keepdims=True))


def normalized_std(z):
    """sqrt(d) times the mean over dimensions of the std of all unit rows."""
    n, q, d = z.shape
    rows = on_sphere(z).reshape(n * q, d)
    deviations = []
    for column in rows.T.tolist():
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / len(column)))
    return math.sqrt(d) * sum(deviations) / d


def alignment(z):
    """Mean over samples of the mean squared distance over all pairs of its unit views."""
    distances = []
    for views in on_sphere(z):
        pairs = list(itertools.combinations(views, 2))
        distances.append(sum(((a - b) ** 2).sum() for a, b in pairs) / len(pairs))
    return sum(distances) / len(distances)


# The metrics of a subset of samples


def subset(n):
    """Numbers of the samples in the subset: the 1,000 with the smallest hash of 32 bits."""

    def lowbias32(x):
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        return x ^ x >> 16

    return sorted(sorted(range(n), key=lowbias32)[:1000])


def cosine(a, b):
    return a @ b / math.sqrt(a @ a * (b @ b))


def own_ranks(z):
    """For each ordered pair of the first 4 views and each sample, the rank of its own other view:
    one more than the other samples whose view is as near."""
    x = z - z.mean(axis=(0, 1))
    m, q = len(x), min(x.shape[1], 4)
    for a, b in itertools.permutations(range(q), 2):
        for i in range(m):
            same = cosine(x[i, a], x[i, b])
            others = (cosine(x[i, a], x[other, b]) for other in range(m) if other != i)
            yield 1 + sum(1 for each in others if each >= same - 1e-9)


def retrieval(z):
    ranks = list(own_ranks(z))
    return sum(1 for rank in ranks if rank == 1) / len(ranks)


def ten_nearest(rows, i):
    """The numbers of the 10 other rows of the largest cosine with row i."""
    others = [other for other in range(len(rows)) if other != i]
    return set(sorted(others, key=lambda other: -cosine(rows[i], rows[other]))[:10])


def stability(z):
    x, half = z - z.mean(axis=(0, 1)), z.shape[1] // 2
    one = [sum(views[:half]) / half for views in x]
    two = [sum(views[half:]) / (len(views) - half) for views in x]
    shared = [len(ten_nearest(one, i) & ten_nearest(two, i)) for i in range(len(x))]
    return sum(shared) / (10 * len(x))
