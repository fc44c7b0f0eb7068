"""The mathematics of the metrics, with torch alone.

functional.py   LiDAR, RankMe and alpha-ReQ of tensors in memory
metrics.py      the equations, and METRICS; imports torch when a metric is computed
spectra.py      moments -> eigenvalues
moments.py      embeddings -> moments; accumulate.py sums them in float64
noise.py        the noise of views in the LDA spectrum
influence.py    the influence of each sample on a metric, for intervals
"""
