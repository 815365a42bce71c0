#!/bin/sh
# Print the extra with the build of DALI for this machine's NVIDIA driver: cuda12, or cuda13, also where there is none,
# because that build runs on CPUs too. `nvidia-smi` shows the newest version of CUDA that the driver supports.
version=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version *: *\([0-9]*\)\..*/\1/p' | head -n 1)
if [ "$version" = 12 ]; then
    echo cuda12
else
    echo cuda13
fi
