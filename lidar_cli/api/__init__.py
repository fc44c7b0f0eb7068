"""`score`, `rank`, `compare` and `inspect` as functions: what the commands do, without printing.

`lidar_cli` exports them. Each takes the settings of its command as keywords, raises the errors of
`lidar_cli.errors`, and gives a result with the records of the command's JSON. Nothing is written to
stdout or stderr: cautions and remarks are warnings of class `LidarWarning`.
"""
