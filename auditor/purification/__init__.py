"""The purification: a scan, the methods, and what came of them on images that none of them saw."""
