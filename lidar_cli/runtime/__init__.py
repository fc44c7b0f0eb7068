"""What every floor above needs of the operating system: files, processes, memory."""
