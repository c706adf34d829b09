#pragma once

#include <nccl.h>

namespace cpnsa::test {

/// A job whose ranks are forked processes, so that NCCL is tested on one machine without a launcher, also with more
/// ranks than GPUs.
class NcclJob {
 public:
  /// Forks the ranks and returns in each of them; the parent waits for them and exits with their status. Must be called
  /// before any call of CUDA.
  static void start(int ranks);

  static int rank();
  static int size();
  /// The id for the next NCCL communicator, the same on every rank; collective.
  static ncclUniqueId next_id();
  /// Whether every rank passed true; collective. False also if a rank does not call it in time.
  static bool all(bool good);
};

}  // namespace cpnsa::test
