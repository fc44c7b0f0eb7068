"""Embeds images with a checkpoint and writes a feature file.

run.py           `lidar extract`: settings -> feature file
plan.py          everything that determines the numbers of a feature file
engine.py        the loop: decode, make views, forward, write; and how many samples at a time
view_cache.py    views that the first checkpoint of a ranking makes and the others read
sharded.py       one process of several that embed one checkpoint together
"""
