"""Attacks, one file each or each family; importing the package registers all of them."""

from auditor.registry import import_siblings
from bench.zoo.attacks.base import ATTACKS, Attack, Batch, Setting

import_siblings(__import__(__name__, fromlist=["attacks"]))

__all__ = ["ATTACKS", "Attack", "Batch", "Setting"]
