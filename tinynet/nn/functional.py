"""The same module as `tinynet.functional`, for `import tinynet.nn.functional as F`."""

import sys

from tinynet import functional
from tinynet.functional import *  # noqa: F403

sys.modules[__name__] = functional
