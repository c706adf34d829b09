#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/plan.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {

/// What a stage is compared with: a problem rounded to the layer's type, whose branches have keys and values of their
/// own, and what the oracle makes of it, in truth and plainly.
struct StageCase {
  StageCase(Problem problem, DType dtype);

  Problem problem;
  DType dtype;
  OracleForward truth, plain;
  const Config& config() const { return problem.config; }
};

/// The gradients of one branch alone: those of the others are gated away.
enum class OnlyBranch { cmp, slc, win };
struct BranchCase {
  BranchCase(const StageCase& stage, OnlyBranch branch);

  Problem problem;  ///< gates as values: random ones for the branch, zeros for the others
  Tensors truth, plain;
  SummaryGradients dsummaries, plain_dsummaries;
  Values weights;      ///< [T, H]
  Values deltas;       ///< [T, H]
  Values log_sum_exp;  ///< [T, H]
};

/// One rank's share of a case in a device's memory, put together from the packed tensors: nothing is communicated.
class RankShare {
 public:
  RankShare(const StageCase& stage, const Partition& partition, int rank, Device& device);

  Values rows(const Values& packed) const;  ///< the rank's rows of a packed tensor
  Values halo(const planning::RankHalo& halo, const Values& packed) const;
  /// Pool of a round: every slot's keys, then values.
  Values pool(const planning::ExchangeRound& round, const Values& k, const Values& v) const;
  std::vector<std::int32_t> selected() const;

  /// Adds what the rank has to a packed tensor.
  void add_rows(Values& packed, const Values& own) const;
  void add_halo(Values& packed, const planning::RankHalo& halo, const Values& stored) const;
  void add_pool(Values& packed_k, Values& packed_v, const planning::ExchangeRound& round, const Values& pool) const;

  DeviceBuffer input(const Values& values) const { return {device_, stage_.dtype, values}; }
  DeviceBuffer accumulated(const Values& values) const { return {device_, accumulate_dtype(stage_.dtype), values}; }
  DeviceBuffer output(std::int64_t rows, std::int64_t width) const;              ///< of the layer's type
  DeviceBuffer accumulated_output(std::int64_t rows, std::int64_t width) const;  ///< of the accumulating type
  Values values(const DeviceBuffer& buffer) const { return buffer.values(stage_.dtype); }
  Values accumulated_values(const DeviceBuffer& buffer) const { return buffer.values(accumulate_dtype(stage_.dtype)); }

  template <class Arguments>
  Arguments arguments() {
    Arguments arguments{};
    arguments.config = &stage_.problem.config;
    arguments.dtype = stage_.dtype;
    scratch_.poison();
    arguments.scratch = scratch_.data();
    return arguments;
  }

  planning::Plan plan;
  planning::BlockSchedule schedule;  ///< for what the truth's queries selected, on every rank
  std::unique_ptr<SegmentSchedule> queries;

 private:
  template <class Visit>
  void for_each_slot_row(const planning::ExchangeRound& round, Visit visit) const;

  const StageCase& stage_;
  std::vector<std::int64_t> tokens_;
  Device& device_;
  DeviceBuffer scratch_;
};

/// A suite that runs each stage of each device that the executable was linked with.
class KernelTest : public testing::TestWithParam<DeviceBackend> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Device& device() { return *device_; }
  bool supported(const Config& config, DType dtype);

  enum class Also { nothing, long_documents, many_summaries, steep_scores };

  /// Random problems and those of the shapes that devices have fast kernels for, in every type of the device; documents
  /// of over 2048 tokens where the device walks long tiles, and what else the stage should see.
  void for_each_case(const std::function<void(const StageCase&)>& check, Also also = Also::nothing);
  /// Every rank's share of a case, whole, cut in rows, and cut in pieces out of order.
  void for_each_partition(const StageCase& stage, const std::function<void(const Partition&)>& check);

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

/// `found`, stored in `stored`, against the truth: with at most `factor` times the plain implementation's error.
testing::AssertionResult agrees(const std::string& name, const Values& found, const Values& truth, const Values& plain,
                                double factor, DType dtype, DType stored, double floor = 0);

/// Log-sum-exps: infinite exactly where the truth's are, and as precise elsewhere.
testing::AssertionResult log_sum_exp_agrees(const Values& found, const Values& truth, const Values& plain, DType dtype);

}  // namespace cpnsa::test
