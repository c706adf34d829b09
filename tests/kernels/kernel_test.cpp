#include "tests/kernels/kernel_test.hpp"

#include <algorithm>
#include <cmath>
#include <iostream>

#include "cpnsa/error.hpp"
#include "kernels/cuda/sm90/shapes.hpp"  // plain C++
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

Problem separate(Problem problem) {
  if (problem.shared_k) problem.inputs.k.slc = problem.inputs.k.win = problem.inputs.k.cmp;
  if (problem.shared_v) problem.inputs.v.slc = problem.inputs.v.win = problem.inputs.v.cmp;
  problem.shared_k = problem.shared_v = false;
  return problem;
}

std::size_t width_of(const Problem& problem, const Values& packed) {
  return packed.size() / static_cast<std::size_t>(problem.tokens());
}

planning::NeedMatrix needs_of(const Problem& problem, const Partition& partition, const planning::Layout& layout,
                              const std::vector<std::int32_t>& selected) {
  const Config& config = problem.config;
  planning::NeedMatrix needs(partition.ranks(), layout.blocks, config.num_kv_heads);
  const std::size_t words = needs.words().size() / static_cast<std::size_t>(partition.ranks());
  for (int rank = 0; rank < partition.ranks(); ++rank)
    for (const planning::OwnedRun& run : layout.runs[static_cast<std::size_t>(rank)])
      for (std::int64_t token = run.begin; token < run.end(); ++token)
        for (std::int64_t at = 0; at < config.num_kv_heads * config.select_count; ++at) {
          const std::int32_t block =
              selected[static_cast<std::size_t>(token * config.num_kv_heads * config.select_count + at)];
          if (block < 0) continue;
          const std::int64_t bit =
              (layout.document_of(run).block + block) * config.num_kv_heads + at / config.select_count;
          needs.words()[static_cast<std::size_t>(rank) * words + static_cast<std::size_t>(bit / 32)] |= 1u << bit % 32;
        }
  return needs;
}

// One KV head with 16 query heads, and few selected blocks.
Config one_group(std::int64_t window) {
  Config config;
  config.num_q_heads = 16, config.num_kv_heads = 1;
  config.head_dim_qk = config.head_dim_v = 64;
  config.select_count = 4;
  config.window = window;
  config.compress_hidden_k = config.compress_hidden_v = 64;
  return config;
}

// Small problems of every shape that Hopper has kernels for, those of the paper and of common models: blocks of 64. In
// the first, the last queries see more blocks than they select.
std::vector<Problem> model_shapes() {
  std::vector<Problem> problems;
  std::uint64_t seed = 500;
  for (const cuda::sm90::Shape& shape : cuda::sm90::shapes) {
    if (shape.heads_per_group == cuda::sm90::any_heads) continue;
    Config config = one_group(100);
    config.num_q_heads = shape.heads_per_group;
    config.head_dim_qk = shape.d_qk, config.head_dim_v = shape.d_v;
    config.local_blocks = 1;
    const std::int64_t end = shape.d_qk == 64 ? 430 : 330;
    problems.push_back(make_problem(config, {0, 100, end}, seed++, {.shared_k = false, .shared_v = false}));
  }
  return problems;
}

// Small problems of the numbers of query heads per KV head and of the head dimensions that models have, on which
// Hopper's tiles have padding: rows, channels, or heads that are split over tiles. `all` of them, or every third.
std::vector<Problem> head_counts(bool all) {
  struct Heads {
    std::int64_t per_group, groups, d_qk, d_v;
  };
  std::vector<Problem> problems;
  std::uint64_t seed = 520;
  for (const Heads heads : {Heads{1, 3, 64, 64},
                            {2, 2, 80, 80},
                            {3, 2, 128, 128},
                            {4, 2, 96, 96},
                            {5, 2, 128, 64},
                            {6, 1, 72, 120},
                            {7, 2, 64, 64},
                            {8, 2, 128, 128},
                            {12, 1, 192, 128},
                            {16, 2, 112, 128},
                            {24, 1, 64, 64},
                            {32, 1, 128, 128},
                            {40, 2, 64, 64},
                            {64, 1, 160, 96},
                            {4, 1, 256, 256},
                            {20, 2, 136, 200},
                            {72, 1, 64, 64},
                            {130, 1, 32, 40}}) {
    Config config = one_group(50);
    config.num_q_heads = heads.per_group * heads.groups, config.num_kv_heads = heads.groups;
    config.head_dim_qk = heads.d_qk, config.head_dim_v = heads.d_v;
    config.local_blocks = 1;
    // The second document has more queries than a tile of 192 rows.
    const bool is_split = heads.per_group > 64;  // over tiles of every kernel
    const std::int64_t end = is_split ? 90 : std::max<std::int64_t>(120, 192 / heads.per_group + 40);
    if (all || is_split || (seed - 520) % 3 == 0)
      problems.push_back(make_problem(config, {0, 33, end}, seed, {.shared_k = false, .shared_v = false}));
    ++seed;
  }
  return problems;
}

// Small problems of other summaries and blocks than the usual, at several numbers of heads per KV head. Queries at the
// end see more blocks than they select.
std::vector<Problem> selection_shapes() {
  struct Case {
    std::int64_t heads_per_group, kv_heads, d_qk, d_v, compress_block, compress_stride, select_block, select_count,
        tokens;
  };
  constexpr Case cases[] = {
      {2, 1, 40, 24, 16, 16, 16, 7, 300},  {3, 2, 64, 64, 32, 32, 32, 5, 330},   {5, 1, 16, 64, 64, 32, 64, 3, 330},
      {6, 1, 64, 8, 64, 64, 64, 3, 330},   {7, 1, 72, 80, 128, 64, 128, 2, 450}, {8, 1, 32, 32, 32, 16, 256, 2, 800},
      {12, 1, 64, 64, 16, 8, 48, 3, 260},  {16, 1, 64, 64, 32, 16, 128, 2, 420}, {24, 1, 64, 64, 32, 16, 32, 3, 200},
      {40, 1, 64, 64, 16, 16, 16, 4, 160}, {64, 1, 64, 64, 32, 16, 32, 3, 160},  {16, 1, 64, 64, 16, 16, 16, 40, 900},
  };
  std::vector<Problem> problems;
  std::uint64_t seed = 700;
  for (const Case& of : cases) {
    Config config = one_group(48);
    config.num_q_heads = of.heads_per_group * of.kv_heads, config.num_kv_heads = of.kv_heads;
    config.head_dim_qk = of.d_qk, config.head_dim_v = of.d_v;
    config.compress_block = of.compress_block, config.compress_stride = of.compress_stride;
    config.select_block = of.select_block, config.select_count = of.select_count;
    config.local_blocks = 1;
    config.compressor = Compressor::mean;
    problems.push_back(make_problem(config, {0, 70, of.tokens}, seed++, {.shared_k = false, .shared_v = false}));
  }
  return problems;
}

// Lists of 128 blocks, of which scores decide on 124; the last queries see more blocks than they select.
Problem many_blocks() {
  Config config = one_group(48);
  config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim_qk = config.head_dim_v = 16;
  config.compress_block = config.compress_stride = config.select_block = 16;
  config.select_count = 128;
  config.compressor = Compressor::mean;
  return make_problem(config, {0, 70, 2250}, 604, {.shared_k = false, .shared_v = false});
}

// A document with more than the 128 summaries that kernels process at a time, and a second document.
Problem long_documents() {
  return make_problem(one_group(400), {0, 2200, 2300}, 600, {.shared_k = false, .shared_v = false});
}

// Scores so far apart that a row's maximum rises by more than 2^8 between tiles of keys, so that kernels rescale.
Problem steep_scores() {
  Config config = one_group(300);
  config.softmax_scale = 1;
  return make_problem(config, {0, 1500}, 602, {.shared_k = false, .shared_v = false});
}

// All scores are negative, and later ones are far higher. Kernels first look for a new maximum among the numbers that
// are not negative.
Problem sunken_scores() {
  Config config = one_group(300);
  config.softmax_scale = 1;
  config.compressor = Compressor::mean;
  Problem problem = make_problem(config, {0, 1500}, 603, {.shared_k = false, .shared_v = false});
  const auto set_first_channel = [&](Values& rows, std::int64_t num_heads, auto value_at) {
    const std::size_t width = static_cast<std::size_t>(num_heads * config.head_dim_qk);
    for (std::size_t i = 0; i < rows.size(); i += static_cast<std::size_t>(config.head_dim_qk))
      rows[i] = value_at(i / width);
  };
  set_first_channel(problem.inputs.q, config.num_q_heads, [](std::size_t) { return 10; });
  for (Values* keys : {&problem.inputs.k.cmp, &problem.inputs.k.slc, &problem.inputs.k.win})
    set_first_channel(*keys, config.num_kv_heads, [](std::size_t token) { return token < 1400 ? -20 : -6; });
  return problem;
}

// 1049 summaries: more than a compressor processes at a time, while the share of each of several ranks is less.
Problem many_summaries() {
  Config config;
  config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim_qk = config.head_dim_v = 16;
  config.compress_block = 2;
  config.compress_stride = 1;
  config.select_count = 4;
  config.window = 4;
  config.compress_hidden_k = config.compress_hidden_v = 16;
  return make_problem(config, {0, 1050}, 601, {.shared_k = false, .shared_v = false});
}

}  // namespace

OpCase::OpCase(Problem problem_, DType dtype_)
    : problem(rounded(separate(std::move(problem_)), dtype_)),
      dtype(dtype_),
      truth(oracle_forward(problem, {dtype, false})),
      plain(oracle_forward(problem, {dtype, true}, &truth.selected)) {}

BranchCase::BranchCase(const OpCase& op_case, OnlyBranch branch) : problem(op_case.problem) {
  problem.config.gate = GateKind::values;
  for (std::size_t i = 0; i < problem.inputs.gate.size(); ++i)
    if (i % 3 != static_cast<std::size_t>(branch)) problem.inputs.gate[i] = 0;
  truth = oracle_backward(problem, {op_case.dtype, false}, op_case.truth.selected, &dsummaries);
  plain = oracle_backward(problem, {op_case.dtype, true}, op_case.truth.selected, &plain_dsummaries);

  const OracleForward& forward = op_case.truth;
  const Values& out = branch == OnlyBranch::cmp   ? forward.o_cmp
                      : branch == OnlyBranch::slc ? forward.o_slc
                                                  : forward.o_win;
  log_sum_exp = branch == OnlyBranch::cmp   ? forward.lse_cmp
                : branch == OnlyBranch::slc ? forward.lse_slc
                                            : forward.lse_win;
  const auto d_v = static_cast<std::size_t>(problem.config.head_dim_v);
  for (std::size_t row = 0; row < log_sum_exp.size(); ++row) {
    weights.push_back(problem.inputs.gate[3 * row + static_cast<std::size_t>(branch)]);
    double delta = 0;
    for (std::size_t c = 0; c < d_v; ++c) delta += problem.dout[row * d_v + c] * out[row * d_v + c];
    deltas.push_back(weights.back() * delta);
  }
}

RankShare::RankShare(const OpCase& op_case, const Partition& partition, int rank, Device& device)
    : plan(op_case.problem.config, partition, rank, AttentionOptions{.dtype = op_case.dtype, .gradient_dtype = {}}),
      schedule(plan.blocks.fetch(needs_of(op_case.problem, partition, plan.layout, op_case.truth.selected))),
      queries(device.schedule(plan.segments, op_case.problem.config)),
      op_case_(op_case),
      tokens_(partition.global_rows(rank)),
      device_(device) {
  const ProblemSize size{.config = &op_case.problem.config,
                         .dtype = op_case.dtype,
                         .rows = plan.rows,
                         .own_summaries = plan.layout.own_summaries[static_cast<std::size_t>(rank)],
                         .summaries = plan.layout.summaries,
                         .blocks = plan.layout.blocks,
                         .backward = true};
  scratch_ = DeviceBuffer(device, device.scratch_bytes(size));
}

Values RankShare::rows(const Values& packed) const {
  const std::size_t width = width_of(op_case_.problem, packed);
  Values own;
  for (const std::int64_t token : tokens_) {
    const auto first = packed.begin() + token * static_cast<std::ptrdiff_t>(width);
    own.insert(own.end(), first, first + static_cast<std::ptrdiff_t>(width));
  }
  return own;
}

Values RankShare::halo(const planning::RankHalo& halo, const Values& packed) const {
  const auto width = static_cast<std::ptrdiff_t>(width_of(op_case_.problem, packed));
  Values stored;
  for (const TokenRange& range : halo.stored)
    stored.insert(stored.end(), packed.begin() + range.begin * width, packed.begin() + range.end * width);
  return stored;
}

// Calls visit(row of the slot, slot, token, KV head) for every row of the round's pool.
template <class Visit>
void RankShare::for_each_slot_row(const planning::ExchangeRound& round, Visit visit) const {
  const Config& config = op_case_.problem.config;
  for (const planning::Document& document : plan.layout.documents)
    for (std::int64_t block = 0; block < document.blocks; ++block)
      for (std::int64_t group = round.group_begin; group < round.group_end; ++group) {
        const BlockLocation where =
            schedule.table[static_cast<std::size_t>((document.block + block) * config.num_kv_heads + group)];
        for (std::int64_t row = 0; where < 0 && row < config.select_block; ++row)
          visit(row, -1 - where, document.begin + block * config.select_block + row, group);
      }
}

Values RankShare::pool(const planning::ExchangeRound& round, const Values& k, const Values& v) const {
  const Config& config = op_case_.problem.config;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v, kv_heads = config.num_kv_heads;
  const std::int64_t slot_size = config.select_block * (d_qk + d_v);
  Values pool(static_cast<std::size_t>(round.received * slot_size));
  for_each_slot_row(round, [&](std::int64_t row, std::int64_t slot, std::int64_t token, std::int64_t group) {
    std::copy_n(k.begin() + (token * kv_heads + group) * d_qk, d_qk, pool.begin() + slot * slot_size + row * d_qk);
    std::copy_n(v.begin() + (token * kv_heads + group) * d_v, d_v,
                pool.begin() + slot * slot_size + config.select_block * d_qk + row * d_v);
  });
  return pool;
}

void RankShare::add_pool(Values& packed_k, Values& packed_v, const planning::ExchangeRound& round,
                         const Values& pool) const {
  const Config& config = op_case_.problem.config;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v, kv_heads = config.num_kv_heads;
  const std::int64_t slot_size = config.select_block * (d_qk + d_v);
  for_each_slot_row(round, [&](std::int64_t row, std::int64_t slot, std::int64_t token, std::int64_t group) {
    for (std::int64_t c = 0; c < d_qk; ++c)
      packed_k[static_cast<std::size_t>((token * kv_heads + group) * d_qk + c)] +=
          pool[static_cast<std::size_t>(slot * slot_size + row * d_qk + c)];
    for (std::int64_t c = 0; c < d_v; ++c)
      packed_v[static_cast<std::size_t>((token * kv_heads + group) * d_v + c)] +=
          pool[static_cast<std::size_t>(slot * slot_size + config.select_block * d_qk + row * d_v + c)];
  });
}

std::vector<std::int32_t> RankShare::selected() const {
  const auto width = static_cast<std::ptrdiff_t>(op_case_.config().num_kv_heads * op_case_.config().select_count);
  std::vector<std::int32_t> own;
  for (const std::int64_t token : tokens_) {
    const auto first = op_case_.truth.selected.begin() + token * width;
    own.insert(own.end(), first, first + width);
  }
  return own;
}

void RankShare::add_rows(Values& packed, const Values& own) const {
  const std::size_t width = width_of(op_case_.problem, packed);
  for (std::size_t row = 0; row < tokens_.size(); ++row)
    for (std::size_t c = 0; c < width; ++c)
      packed[static_cast<std::size_t>(tokens_[row]) * width + c] += own[row * width + c];
}

void RankShare::add_halo(Values& packed, const planning::RankHalo& halo, const Values& stored) const {
  const std::size_t width = width_of(op_case_.problem, packed);
  std::size_t at = 0;
  for (const TokenRange& range : halo.stored)
    for (std::size_t i = static_cast<std::size_t>(range.begin) * width; i < static_cast<std::size_t>(range.end) * width;
         ++i)
      packed[i] += stored[at++];
}

DeviceBuffer RankShare::output(std::int64_t rows, std::int64_t width) const {
  return {device_, static_cast<std::size_t>(rows * width) * size_of(op_case_.dtype)};
}

DeviceBuffer RankShare::accumulated_output(std::int64_t rows, std::int64_t width) const {
  return {device_, static_cast<std::size_t>(rows * width) * size_of(accumulate_dtype(op_case_.dtype))};
}

void KernelTest::SetUp() {
  try {
    device_ = GetParam().make();
  } catch (const DeviceError& error) {
    GTEST_SKIP() << error.what();
  }
  device_->activate();
}

void KernelTest::TearDown() {
  if (unsupported_ > 0)
    std::cout << "[  SKIPPED ] " << unsupported_
              << " cases that the device does not support, the first: " << first_unsupported_ << '\n';
}

bool KernelTest::supported(const Config& config, DType dtype) {
  try {
    device_->check_supported(config, dtype);
    return true;
  } catch (const UnsupportedError& error) {
    if (unsupported_++ == 0) first_unsupported_ = error.what();
    return false;
  }
}

void KernelTest::for_each_case(const std::function<void(const OpCase&)>& check, Also also) {
  for (const DType dtype : GetParam().dtypes) {
    std::vector<Problem> problems;
    for (const std::uint64_t seed : seeds(8)) problems.push_back(random_problem(6000 + seed, 120, GetParam().dim_step));
    if (size_of(dtype) == 2 && (GetParam().has_long_tiles || dtype == DType::bf16))
      for (Problem& problem : model_shapes()) problems.push_back(std::move(problem));
    if (dtype == DType::bf16)
      for (Problem& problem : head_counts(GetParam().pads_heads)) problems.push_back(std::move(problem));
    if ((GetParam().has_long_tiles || also == Also::long_documents) && dtype == DType::bf16)
      problems.push_back(long_documents());
    if (also == Also::steep_scores && dtype == DType::bf16) {
      problems.push_back(steep_scores());
      problems.push_back(sunken_scores());
    }
    if (also == Also::many_summaries && dtype == DType::bf16) problems.push_back(many_summaries());
    for (Problem& problem : problems) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
      if (!supported(problem.config, dtype)) continue;
      check(OpCase(std::move(problem), dtype));
      if (HasFatalFailure()) return;
    }
  }
}

void KernelTest::for_each_selection_shape(const std::function<void(const OpCase&)>& check, BlockSizes sizes) {
  for (Problem& problem : selection_shapes()) {
    const std::int64_t block = problem.config.select_block;
    if (sizes == BlockSizes::other && (block == 64 || block == 48)) continue;
    SCOPED_TRACE(describe(problem));
    if (!supported(problem.config, DType::bf16)) continue;
    check(OpCase(std::move(problem), DType::bf16));
    if (HasFatalFailure()) return;
  }
}

void KernelTest::with_many_blocks(const std::function<void(const OpCase&)>& check) {
  Problem problem = many_blocks();
  ASSERT_TRUE(supported(problem.config, DType::bf16));
  check(OpCase(std::move(problem), DType::bf16));
}

void KernelTest::for_each_partition(const OpCase& op_case, const std::function<void(const Partition&)>& check) {
  for (const auto& [kind, ranks] :
       {std::pair{PartitionKind::contiguous, 1}, {PartitionKind::zigzag, 2}, {PartitionKind::custom, 4}}) {
    // The other two kinds already cover whole documents and cut ones.
    if (GetParam().is_slow && kind == PartitionKind::zigzag && op_case.problem.tokens() > 200) continue;
    SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks");
    check(make_partition(kind, op_case.problem, ranks));
    if (HasFatalFailure()) return;
  }
}

std::string name_of_device(const testing::TestParamInfo<DeviceBackend>& info) {
  return info.param.name;
}

testing::AssertionResult agrees(const std::string& name, const Values& found, const Values& truth, const Values& plain,
                                double factor, DType dtype, DType stored, double floor) {
  return within(name, found, truth, derived_tolerance(relative_error(plain, truth), factor, dtype, stored), floor);
}

testing::AssertionResult log_sum_exp_agrees(const Values& found, const Values& truth, const Values& plain,
                                            DType dtype) {
  if (found.size() != truth.size()) return testing::AssertionFailure() << "log-sum-exp: wrong size";
  Values finite_found, finite_truth, finite_plain;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    if (std::isinf(truth[i])) {
      if (found[i] != truth[i])
        return testing::AssertionFailure() << "log-sum-exp " << i << " is " << found[i] << ", expected " << truth[i];
      continue;
    }
    finite_found.push_back(found[i]);
    finite_truth.push_back(truth[i]);
    finite_plain.push_back(plain[i]);
  }
  return agrees("log-sum-exp", finite_found, finite_truth, finite_plain, forward_factor, dtype, accumulate_dtype(dtype),
                1e-6 * (dtype == DType::f64 ? 1e-8 : 1));
}

}  // namespace cpnsa::test
