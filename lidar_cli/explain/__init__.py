"""The texts of `lidar explain`: Markdown files, and what is generated from the code."""
