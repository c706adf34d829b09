#!/usr/bin/env bash
# Fails when a CUDA kernel spills registers, unless scripts/known_spills.txt names it and it spills no more than is
# written there: scripts/check_spills.sh LOG, a build's output under -Xptxas -v. The log may hold several builds one
# after the other; the last word on a kernel counts.
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
result=$(c++filt <<< "$result" | awk '
  FNR == NR { if (!/^#/) { most[++rules] = $1; name[rules] = substr($0, length($1) + 2) } next }
  /^spills / {
    for (rule = 1; rule <= rules; ++rule)
      if ($0 ~ name[rule] && $2 <= most[rule]) { print "known: " $0; next }
  }
  { print }' "${BASH_SOURCE[0]%/*}/known_spills.txt" -)
echo "$result"
if grep -q 'kernels checked: 0,' <<< "$result"; then
  echo "check_spills.sh: error: found no kernel in $log, expected the output of a build under -Xptxas -v" >&2
  exit 1
fi
! grep -q '^spills ' <<< "$result"
