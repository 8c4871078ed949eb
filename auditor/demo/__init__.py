"""The embedded example: drawn traffic signs, a network with a backdoor and its benign twin."""

from auditor.demo.make import FULL, DemoFacts, Scale, make_demo

__all__ = ["FULL", "DemoFacts", "Scale", "make_demo"]
