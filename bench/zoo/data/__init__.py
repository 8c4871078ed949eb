"""Images to train on: importing the package registers all data sets.

Every loader reads local files only, and gives the same split every time.
"""

from auditor.registry import import_siblings
from bench.zoo.data.base import DATA, Data, Part

import_siblings(__import__(__name__, fromlist=["data"]))

__all__ = ["DATA", "Data", "Part"]
