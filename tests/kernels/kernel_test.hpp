#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/planning/plan.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {

/// A case that ops are tested with: a problem whose tensors are rounded to the layer's type and whose branches each
/// have their own keys and values, the oracle's results, and those of a plain implementation in the layer's type.
struct OpCase {
  OpCase(Problem problem, DType dtype);

  Problem problem;
  DType dtype;
  OracleForward truth, plain;
  const Config& config() const { return problem.config; }
};

enum class OnlyBranch { cmp, slc, win };

/// The gradients of one branch of a case: the gates of the other branches are 0.
struct BranchCase {
  BranchCase(const OpCase& op_case, OnlyBranch branch);

  Problem problem;  ///< its gates are values: random for the branch, 0 for the others
  Tensors truth, plain;
  SummaryGradients dsummaries, plain_dsummaries;
  Values weights;      ///< [T, H]
  Values deltas;       ///< [T, H]
  Values log_sum_exp;  ///< [T, H]
};

/// One rank's share of a case, cut out of the packed tensors and copied to a device; nothing is communicated.
class RankShare {
 public:
  RankShare(const OpCase& op_case, const Partition& partition, int rank, Device& device);

  Values rows(const Values& packed) const;  ///< the rank's rows of a packed tensor
  Values halo(const planning::RankHalo& halo, const Values& packed) const;
  /// The pool of a round: for each slot its keys, then its values.
  Values pool(const planning::ExchangeRound& round, const Values& k, const Values& v) const;
  std::vector<std::int32_t> selected() const;

  /// Adds the rank's rows, halo or pool to a packed tensor.
  void add_rows(Values& packed, const Values& own) const;
  void add_halo(Values& packed, const planning::RankHalo& halo, const Values& stored) const;
  void add_pool(Values& packed_k, Values& packed_v, const planning::ExchangeRound& round, const Values& pool) const;

  DeviceBuffer input(const Values& values) const { return {device_, op_case_.dtype, values}; }
  DeviceBuffer accumulated(const Values& values) const { return {device_, accumulate_dtype(op_case_.dtype), values}; }
  DeviceBuffer output(std::int64_t rows, std::int64_t width) const;              ///< of the layer's type
  DeviceBuffer accumulated_output(std::int64_t rows, std::int64_t width) const;  ///< of accumulate_dtype()
  Values values(const DeviceBuffer& buffer) const { return buffer.values(op_case_.dtype); }
  Values accumulated_values(const DeviceBuffer& buffer) const {
    return buffer.values(accumulate_dtype(op_case_.dtype));
  }

  /// An op with its OpContext filled in and its scratch poisoned.
  template <class Op>
  Op op() {
    Op op{};
    op.config = &op_case_.problem.config;
    op.dtype = op_case_.dtype;
    scratch_.poison();
    op.scratch = scratch_.data();
    return op;
  }

  planning::Plan plan;
  planning::BlockSchedule schedule;  ///< of the blocks that the oracle selected, on every rank
  std::unique_ptr<SegmentSchedule> queries;

 private:
  template <class Visit>
  void for_each_slot_row(const planning::ExchangeRound& round, Visit visit) const;

  const OpCase& op_case_;
  std::vector<std::int64_t> tokens_;
  Device& device_;
  DeviceBuffer scratch_;
};

/// A suite that runs the ops of each device that the executable was linked with.
class KernelTest : public testing::TestWithParam<DeviceBackend> {
 public:
  Device& device() { return *device_; }
  /// Calls `check` with partitions of the case: one rank, zigzag over two, and a random one over four.
  void for_each_partition(const OpCase& op_case, const std::function<void(const Partition&)>& check);

 protected:
  void SetUp() override;
  void TearDown() override;

  bool supported(const Config& config, DType dtype);

  enum class Also { nothing, long_documents, many_summaries, steep_scores };

  /// Calls `check` with random problems and with the shapes for which devices have fast kernels, in every type of the
  /// device; with documents of over 2048 tokens if the device has long tiles; and with the cases that `also` names.
  void for_each_case(const std::function<void(const OpCase&)>& check, Also also = Also::nothing);
  enum class BlockSizes { all, other };

  /// Calls `check` with small problems of many summaries and blocks, or of the block sizes for which Hopper's selected
  /// branch has code of its own besides that for 64, which for_each_case() covers.
  void for_each_selection_shape(const std::function<void(const OpCase&)>& check, BlockSizes sizes);

  /// Calls `check` with a problem that selects 128 blocks.
  void with_many_blocks(const std::function<void(const OpCase&)>& check);

 private:
  std::unique_ptr<Device> device_;
  int unsupported_ = 0;
  std::string first_unsupported_;
};

std::string name_of_device(const testing::TestParamInfo<DeviceBackend>& info);

#define CPNSA_KERNEL_SUITE(Suite)                       \
  class Suite : public KernelTest {};                   \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Suite); \
  INSTANTIATE_TEST_SUITE_P(Kernels, Suite, testing::ValuesIn(devices()), name_of_device)

/// Passes if the error of `found`, stored in type `stored`, against the truth is at most `factor` times that of the
/// plain implementation, up to rounding and `floor`.
testing::AssertionResult agrees(const std::string& name, const Values& found, const Values& truth, const Values& plain,
                                double factor, DType dtype, DType stored, double floor = 0);

/// The same for log-sum-exps, which must be infinite exactly where those of the truth are.
testing::AssertionResult log_sum_exp_agrees(const Values& found, const Values& truth, const Values& plain, DType dtype);

}  // namespace cpnsa::test
