#!/usr/bin/env bash
# Fails when a CUDA kernel spills registers: scripts/check_spills.sh LOG, a build's output under -Xptxas -v. The log may
# hold several builds one after the other; the last word on a kernel counts.
set -euo pipefail
log=${1:?usage: scripts/check_spills.sh LOG}

result=$(awk '
  /Function properties for/ { kernel = $NF }
  /bytes spill stores/ {
    match($0, /[0-9]+ bytes spill stores/); stores = substr($0, RSTART) + 0
    match($0, /[0-9]+ bytes spill loads/);  loads = substr($0, RSTART) + 0
    spills[kernel] = stores + loads
  }
  END {
    for (kernel in spills) {
      ++kernels
      if (spills[kernel] > 0) { ++spilling; print "spills " spills[kernel] " bytes: " kernel }
    }
    print "kernels checked: " kernels + 0 ", spilling: " spilling + 0
  }' "$log")
if command -v c++filt > /dev/null; then result=$(c++filt <<< "$result"); fi
echo "$result"
if grep -q 'kernels checked: 0,' <<< "$result"; then
  echo "check_spills.sh: error: found no kernel in $log, expected the output of a build under -Xptxas -v" >&2
  exit 1
fi
! grep -q '^spills ' <<< "$result"
