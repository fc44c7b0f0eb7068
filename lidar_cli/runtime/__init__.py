"""Files, processes, devices and memory: what all packages above need from the operating system."""
