"""Parts of a file against the same parts scored alone; the advice against its equations."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from make import lidar_here
from test_features import write_features

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError
from lidar_cli.jobs.converge import OF_ROWS, converge_file
from lidar_cli.jobs.convergence import (
    LITTLE_NOISE,
    Point,
    advise,
    noise_fraction_at,
    parts_of,
    views_for,
)
from lidar_cli.jobs.score import score_file
from lidar_cli.jobs.sheet import Score
from lidar_cli.settings import ScoreSettings
