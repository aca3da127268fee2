"""Files, processes, devices and progress.  Knows no image.

addresses  files behind addresses; fsspec
cache      local copies of far content, of bounded size
captured   training steps as CUDA graphs
claims     who makes which file, among any number of processes
device     devices, precisions, copies to and fro, memory
files      files and folders that are whole or not there
formats    YAML records, JSON lines, CSV tables; is this folder mine?
helpers    copies of this process that train students beside it
place      where a process number means one process; does it live?
processes  this process among its peers; accelerate
progress   progress bars
tensors    checked tensor files
terminal   what is printed, made harmless
threads    threads that work a little ahead
"""
