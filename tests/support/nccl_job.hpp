#pragma once

#include <nccl.h>

namespace cpnsa::test {

/// Ranks that are processes forked by one another's parent, so that NCCL is tested on one machine without a launcher,
/// also with more ranks than GPUs.
class NcclJob {
 public:
  /// Before anything of CUDA: forks the ranks and returns in each of them. In the parent it waits for them and ends
  /// the process with what they ended with.
  static void start(int ranks);

  static int rank();
  static int size();
  /// The id of the next NCCL communicator, the same on every rank; collective.
  static ncclUniqueId next_id();
  /// Whether every rank passed true; collective. False also when a rank does not come.
  static bool all(bool good);
};

}  // namespace cpnsa::test
