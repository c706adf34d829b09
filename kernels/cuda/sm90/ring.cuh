#pragma once

namespace cpnsa::cuda::sm90 {

/// A position in a ring of stages, and the parity of the phase that its `full` barrier completes there.
template <int Stages>
struct RingPosition {
  int stage = 0;
  int phase = 0;
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace cpnsa::cuda::sm90
