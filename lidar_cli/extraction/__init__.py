"""Checkpoints and images to feature files.

run.py           `lidar extract`: settings -> feature file
plan.py          all that determines the numbers, before any is computed
engine.py        the loop: decode, make views, forward, write; and how many samples at a time
view_source.py   samples -> batches of views on the device
view_cache.py    views that several checkpoints read and the first one makes
sharded.py       one rank of an extraction by several processes
"""
