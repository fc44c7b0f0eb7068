from lidar_cli.api.commands import compare as compare
from lidar_cli.api.commands import inspect as inspect
from lidar_cli.api.commands import rank as rank
from lidar_cli.api.commands import score as score
from lidar_cli.api.results import CompareResult as CompareResult
from lidar_cli.api.results import InspectResult as InspectResult
from lidar_cli.api.results import RankResult as RankResult
from lidar_cli.api.results import ScoreResult as ScoreResult
from lidar_cli.core.functional import alpha_req as alpha_req
from lidar_cli.core.functional import lidar as lidar
from lidar_cli.core.functional import rankme as rankme
from lidar_cli.core.moments import Moments as Moments
from lidar_cli.errors import InputError as InputError
from lidar_cli.errors import LidarError as LidarError
from lidar_cli.errors import LidarWarning as LidarWarning
from lidar_cli.errors import SettingsError as SettingsError
from lidar_cli.extraction.run import extract as extract
from lidar_cli.features.writer import FeatureWriter as FeatureWriter
from lidar_cli.features.writer import write_features as write_features
from lidar_cli.integrations.torchmetrics import AlphaReQ as AlphaReQ
from lidar_cli.integrations.torchmetrics import LiDAR as LiDAR
from lidar_cli.integrations.torchmetrics import Pillai as Pillai
from lidar_cli.integrations.torchmetrics import RankMe as RankMe

__version__: str
