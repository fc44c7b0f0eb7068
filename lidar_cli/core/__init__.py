"""The equations of the metrics, and what they are computed from: moments, spectra, view noise."""
