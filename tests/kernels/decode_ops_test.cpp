// The ops that decode, in the order of a step, on every device: sequences are appended to a paged cache in pieces, and
// the results are compared with the oracle's over whole documents. A sequence has the same bits for every way of
// cutting it and in every batch.

#include <algorithm>
#include <numeric>

#include "tests/kernels/kernel_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(DecodeOps);

/// One branch's pools of a rank.
struct Pools {
  DeviceBuffer k, v;
};

/// How the documents of a problem are decoded.
struct DecodeCase {
  std::int64_t page;          ///< tokens
  std::int64_t summary_page;  ///< summaries
  std::int64_t ranks;
  std::uint64_t seed;     ///< of the order of pages and of the pieces
  std::int64_t max_rows;  ///< that a sequence appends in a step
};

struct DecodeResult {
  Values out, lse_cmp, lse_slc, lse_win;
  std::vector<std::int32_t> selected;
};

/// One rank's cache and the ops of a step.
class DecodeRank {
  auto copy_parameter() {
    return [this](auto, const void*& pointer, DeviceBuffer& buffer, const Values& values) {
      if (values.empty()) return;
      buffer = DeviceBuffer(device_, dtype_, values);
      pointer = buffer.data();
    };
  }

 public:
  DecodeRank(const Problem& problem, DType dtype, const DecodeCase& how, int rank, Device& device)
      : problem_(problem), config_(problem.config), dtype_(dtype), how_(how), rank_(rank), device_(device) {
    Random random(how.seed + 17 * static_cast<std::uint64_t>(rank));
    const std::int64_t documents = sequences(), longest = max_length();
    columns_ = (longest + how.page * how.ranks - 1) / (how.page * how.ranks) + 1;
    table_ = shuffled_pages(random, documents * columns_);
    rows_.page = how.page;
    rows_.pages = documents * columns_;
    rows_.columns = columns_;
    rows_.table = static_cast<const std::int32_t*>(table_.data());
    rows_.rank = rank, rows_.ranks = how.ranks;
    rows_.edge = how.ranks > 1 ? config_.compress_block - config_.compress_stride : 0;
    for (Pools& pools : branches_) {
      pools.k = DeviceBuffer(device, bytes(rows_.pages * rows_.k_rows(), config_.head_dim_qk));
      pools.v = DeviceBuffer(device, bytes(rows_.pages * rows_.v_rows(), config_.head_dim_v));
    }
    summaries_.strides = how.page / config_.compress_stride;
    summaries_.repeated = how.ranks > 1 ? config_.compress_block / config_.compress_stride - 1 : 0;
    summaries_.page = how.summary_page;
    summaries_.columns = columns_ * (summaries_.strides + summaries_.repeated) / how.summary_page + 1;
    summaries_.pages = documents * summaries_.columns;
    summaries_.rank = rank, summaries_.ranks = how.ranks;
    summary_table_ = shuffled_pages(random, summaries_.pages);
    summaries_.table = static_cast<const std::int32_t*>(summary_table_.data());
    summary_pools_.k = DeviceBuffer(device, bytes(summaries_.pages * summaries_.page, config_.head_dim_qk));
    summary_pools_.v = DeviceBuffer(device, bytes(summaries_.pages * summaries_.page, config_.head_dim_v));
    summaries_.k = summary_pools_.k.data(), summaries_.v = summary_pools_.v.data();
    schema::for_each_compressor_member(copy_parameter(), k_parameters_, k_set_, problem.inputs.compress_k);
    schema::for_each_compressor_member(copy_parameter(), v_parameters_, v_set_, problem.inputs.compress_v);
    const DecodeSize size{&config_, dtype, documents, problem.tokens(), longest, how.ranks, false};
    scratch_ = DeviceBuffer(device, device.decode_scratch_bytes(size));
    schedule_ = DeviceBuffer(device, device.decode_schedule_bytes(size));
  }

  std::int64_t sequences() const { return static_cast<std::int64_t>(problem_.cu_seqlens.size()) - 1; }
  std::int64_t max_length() const {
    std::int64_t longest = 1;
    for (std::int64_t i = 0; i < sequences(); ++i) longest = std::max(longest, length_of(i));
    return longest;
  }
  std::int64_t length_of(std::int64_t i) const {
    return problem_.cu_seqlens[static_cast<std::size_t>(i + 1)] - problem_.cu_seqlens[static_cast<std::size_t>(i)];
  }

  /// Prepares a step; `tokens` are the packed tokens that it appends, sequence by sequence.
  void prepare(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& lengths,
               const std::vector<std::int32_t>& cu_q, std::vector<std::int64_t> tokens) {
    tokens_ = std::move(tokens);
    batch_ = static_cast<std::int64_t>(slots.size());
    slots_ = DeviceBuffer(device_, slots), lengths_ = DeviceBuffer(device_, lengths);
    cu_q_ = DeviceBuffer(device_, cu_q);
    schedule_.poison();
    scratch_.poison();
    auto op = context<PrepareDecode>();
    op.num_slots = sequences();
    op.slots = static_cast<const std::int32_t*>(slots_.data());
    op.lengths = static_cast<const std::int32_t*>(lengths_.data());
    op.cu_q = static_cast<const std::int32_t*>(cu_q_.data());
    op.schedule = schedule_.data();
    device_.run(op, Stream{});

    const Tensors& inputs = problem_.inputs;
    q_ = input(inputs.q), gate_ = input(inputs.gate);
    const std::array<const Values*, 3> k{&inputs.k.cmp, &inputs.k.slc, &inputs.k.win};
    const std::array<const Values*, 3> v{&inputs.v.cmp, &inputs.v.slc, &inputs.v.win};
    for (std::size_t i = 0; i < 3; ++i) k_[i] = input(*k[i]), v_[i] = input(*v[i]);
    const std::int64_t pairs = rows() * config_.num_q_heads;
    o_cmp_ = accumulated(pairs * config_.head_dim_v);
    for (DeviceBuffer& sums : sums_) sums = accumulated(pairs);
    selected_ = poisoned_indices(device_, rows() * config_.num_kv_heads * config_.select_count);
    out_ = DeviceBuffer(device_, static_cast<std::size_t>(pairs * config_.head_dim_v) * size_of(dtype_));
  }

  void append() {
    auto op = context<DecodeAppend>();
    op.k_cmp = k_[0].data(), op.k_slc = k_[1].data(), op.k_win = k_[2].data();
    op.v_cmp = v_[0].data(), op.v_slc = v_[1].data(), op.v_win = v_[2].data();
    op.cmp = branch(0), op.slc = branch(1), op.win = branch(2);
    device_.run(op, Stream{});
    auto compress = context<DecodeCompress>();
    compress.k_parameters = k_parameters_, compress.v_parameters = v_parameters_;
    compress.cmp = branch(0);
    compress.summaries = summaries_;
    device_.run(compress, Stream{});
  }

  void attend_to_summaries() {
    auto op = context<DecodeCompressedAttention>();
    op.q = q_.data();
    op.summaries = summaries_;
    op.out = o_cmp_.data();
    op.log_sum_exp = sums_[0].data();
    device_.run(op, Stream{});
  }

  DecodeSelectBlocks select_op(const DeviceBuffer& log_sum_exp) const {
    auto op = context<DecodeSelectBlocks>();
    op.q = q_.data();
    op.log_sum_exp = log_sum_exp.data();
    op.summaries = summaries_;
    return op;
  }

  void select() {
    auto op = select_op(sums_[0]);
    op.selected = static_cast<std::int32_t*>(selected_.data());
    device_.run(op, Stream{});
  }

  DecodeTokenAttention token_op() const {
    auto op = context<DecodeTokenAttention>();
    op.q = q_.data();
    op.slc = branch(1), op.win = branch(2);
    op.selected = static_cast<const std::int32_t*>(selected_.data());
    return op;
  }

  void attend_to_tokens() {
    auto op = token_op();
    op.lse_slc = sums_[1].data(), op.lse_win = sums_[2].data();
    op.gate = gate_.data(), op.o_cmp = o_cmp_.data(), op.out = out_.data();
    device_.run(op, Stream{});
  }

  /// Adds the step's results to those of all tokens.
  void collect(DecodeResult& result) const {
    const auto scatter = [&](Values& all, const Values& own) {
      const std::size_t width = own.size() / tokens_.size();
      all.resize(static_cast<std::size_t>(problem_.tokens()) * width);
      for (std::size_t i = 0; i < tokens_.size(); ++i)
        std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                    all.begin() + tokens_[i] * static_cast<std::ptrdiff_t>(width));
    };
    scatter(result.out, out_.values(dtype_));
    const DType acc = accumulate_dtype(dtype_);
    scatter(result.lse_cmp, sums_[0].values(acc));
    scatter(result.lse_slc, sums_[1].values(acc));
    scatter(result.lse_win, sums_[2].values(acc));
    const std::vector<std::int32_t> selected = selected_.indices();
    const std::size_t width = selected.size() / tokens_.size();
    result.selected.resize(static_cast<std::size_t>(problem_.tokens()) * width);
    for (std::size_t i = 0; i < tokens_.size(); ++i)
      std::copy_n(selected.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                  result.selected.begin() + tokens_[i] * static_cast<std::ptrdiff_t>(width));
  }

  template <class Op>
  Op context() const {
    Op op{};
    op.config = &config_;
    op.dtype = dtype_;
    op.scratch = scratch_.data();
    op.schedule = schedule_.data();
    op.sequences = batch_;
    op.tokens = rows();
    op.max_length = max_length();
    return op;
  }

  std::int64_t rows() const { return static_cast<std::int64_t>(tokens_.size()); }
  DeviceBuffer accumulated(std::int64_t count) const {
    return {device_, static_cast<std::size_t>(count) * size_of(accumulate_dtype(dtype_))};
  }
  const DeviceBuffer& sums(std::size_t branch) const { return sums_[branch]; }
  const DeviceBuffer& gate() const { return gate_; }
  const DeviceBuffer& o_cmp() const { return o_cmp_; }
  DeviceBuffer& selected() { return selected_; }
  DeviceBuffer& out() { return out_; }

 private:
  std::size_t bytes(std::int64_t rows, std::int64_t dim) const {
    return static_cast<std::size_t>(rows * config_.num_kv_heads * dim) * size_of(dtype_);
  }
  DeviceBuffer shuffled_pages(Random& random, std::int64_t count) const {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(count));
    std::iota(pages.begin(), pages.end(), 0);
    for (std::int64_t i = count - 1; i > 0; --i)
      std::swap(pages[static_cast<std::size_t>(i)], pages[static_cast<std::size_t>(random.integer(0, i))]);
    return {device_, pages};
  }
  PagedRows branch(std::size_t i) const {
    PagedRows rows = rows_;
    rows.k = branches_[i].k.data(), rows.v = branches_[i].v.data();
    if (i > 0) rows.edge = 0;
    return rows;
  }
  DeviceBuffer input(const Values& packed) const {
    const std::size_t width = packed.size() / static_cast<std::size_t>(problem_.tokens());
    Values own;
    for (const std::int64_t token : tokens_)
      own.insert(own.end(), packed.begin() + token * static_cast<std::ptrdiff_t>(width),
                 packed.begin() + (token + 1) * static_cast<std::ptrdiff_t>(width));
    return {device_, dtype_, own};
  }

  const Problem& problem_;
  const Config& config_;
  DType dtype_;
  DecodeCase how_;
  int rank_;
  Device& device_;
  std::int64_t columns_ = 0, batch_ = 0;
  std::vector<std::int64_t> tokens_;
  PagedRows rows_;
  PagedSummaries summaries_;
  std::array<Pools, 3> branches_;
  Pools summary_pools_;
  DeviceBuffer table_, summary_table_, scratch_, schedule_, slots_, lengths_, cu_q_;
  CompressorSet<DeviceBuffer> k_set_, v_set_;
  CompressorPointers k_parameters_, v_parameters_;
  DeviceBuffer q_, gate_, o_cmp_, selected_, out_;
  std::array<DeviceBuffer, 3> k_, v_, sums_;
};

/// All ranks' tensors in memory that a device can read as RankParts.
struct Gathered {
  Gathered(Device& device, const std::vector<DeviceBuffer>& parts) : buffer(device, parts[0].bytes() * parts.size()) {
    std::vector<std::byte> all;
    for (const DeviceBuffer& part : parts) {
      const std::vector<std::byte> own = part.read();
      all.insert(all.end(), own.begin(), own.end());
    }
    buffer.write(all.data(), all.size());
    view = {buffer.data(), static_cast<std::int64_t>(parts[0].bytes())};
  }
  DeviceBuffer buffer;
  RankParts view;
};

/// The step of several ranks whose pages are dealt out: messages are copies. Results are left in rank 0.
void run_sharded(std::vector<DecodeRank>& ranks, const Config& config, Device& device) {
  const auto count = static_cast<std::int64_t>(ranks.size());
  const std::int64_t rows = ranks[0].rows(), pairs = rows * config.num_q_heads;
  std::vector<DeviceBuffer> cmp, win, scores, candidates, o_win, weighted, o_slc, slc;
  for (DecodeRank& rank : ranks) {
    rank.append();
    rank.attend_to_summaries();
    auto window = rank.token_op();
    window.selected_branch = false;
    o_win.push_back(rank.accumulated(pairs * config.head_dim_v)), win.push_back(rank.accumulated(pairs));
    window.o_win = o_win.back().data(), window.lse_win = win.back().data();
    device.run(window, Stream{});
    cmp.emplace_back(device, rank.sums(0).bytes());
    const std::vector<std::byte> sums = rank.sums(0).read();
    cmp.back().write(sums.data(), sums.size());
  }
  const Gathered all_cmp(device, cmp), all_win(device, win);
  const std::array<const Gathered*, 2> sources{&all_cmp, &all_win};
  for (DecodeRank& rank : ranks) {
    for (const std::size_t branch : {0, 2}) {
      auto merge = rank.context<DecodeMergeSums>();
      merge.ranks = count;
      merge.parts = sources[branch / 2]->view;
      merge.log_sum_exp = rank.sums(branch).data();
      device.run(merge, Stream{});
    }
    scores.push_back(rank.accumulated(rows * config.num_kv_heads * config.select_count));
    candidates.push_back(poisoned_indices(device, rows * config.num_kv_heads * config.select_count));
    auto select = rank.select_op(rank.sums(0));
    select.scores = scores.back().data();
    select.candidates = static_cast<std::int32_t*>(candidates.back().data());
    device.run(select, Stream{});
  }
  const Gathered all_scores(device, scores), all_candidates(device, candidates);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    DecodeRank& rank = ranks[i];
    auto merge = rank.context<DecodeMergeCandidates>();
    merge.ranks = count;
    merge.scores = all_scores.view, merge.candidates = all_candidates.view;
    merge.selected = static_cast<std::int32_t*>(rank.selected().data());
    device.run(merge, Stream{});
    weighted.push_back(rank.accumulated(pairs * config.head_dim_v));
    auto weigh = rank.context<DecodeWeighParts>();
    weigh.gate = rank.gate().data();
    weigh.o_cmp = rank.o_cmp().data(), weigh.o_win = o_win[i].data();
    weigh.lse_cmp = cmp[i].data(), weigh.lse_win = win[i].data();
    weigh.all_lse_cmp = rank.sums(0).data(), weigh.all_lse_win = rank.sums(2).data();
    weigh.out = weighted.back().data();
    device.run(weigh, Stream{});
    auto selected = rank.token_op();
    selected.window_branch = false;
    o_slc.push_back(rank.accumulated(pairs * config.head_dim_v)), slc.push_back(rank.accumulated(pairs));
    selected.o_slc = o_slc.back().data(), selected.lse_slc = slc.back().data();
    device.run(selected, Stream{});
  }
  const Gathered all_weighted(device, weighted), all_slc(device, o_slc), all_sums(device, slc);
  auto merge = ranks[0].context<DecodeMergeParts>();
  merge.ranks = count;
  merge.gate = ranks[0].gate().data();
  merge.weighted = all_weighted.view, merge.o_slc = all_slc.view, merge.lse_slc = all_sums.view;
  merge.out = ranks[0].out().data();
  merge.all_lse_slc = ranks[0].sums(1).data();
  device.run(merge, Stream{});
}

/// Decodes all documents: in each step a random part of the sequences append a random number of tokens.
DecodeResult decode_all(const Problem& problem, DType dtype, const DecodeCase& how, Device& device) {
  DecodeResult result;
  std::vector<DecodeRank> ranks;
  for (int rank = 0; rank < how.ranks; ++rank) ranks.emplace_back(problem, dtype, how, rank, device);
  Random random(how.seed);
  const std::int64_t sequences = ranks[0].sequences();
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(sequences), 0);
  for (;;) {
    std::vector<std::int32_t> slots, cu_q{0};
    std::vector<std::int64_t> tokens;
    bool left = false;
    std::vector<std::int32_t> after = lengths;
    for (std::int64_t i = sequences - 1; i >= 0; --i) {
      const auto slot = static_cast<std::size_t>(i);
      const std::int64_t missing = ranks[0].length_of(i) - lengths[slot];
      left |= missing > 0;
      if (sequences > 1 && random.chance(0.3)) continue;
      const std::int64_t rows = std::min(missing, random.integer(0, how.max_rows));
      for (std::int64_t r = 0; r < rows; ++r) tokens.push_back(problem.cu_seqlens[slot] + lengths[slot] + r);
      after[slot] += static_cast<std::int32_t>(rows);
      slots.push_back(static_cast<std::int32_t>(i)), cu_q.push_back(static_cast<std::int32_t>(tokens.size()));
    }
    if (!left) return result;
    if (tokens.empty()) continue;
    for (DecodeRank& rank : ranks) rank.prepare(slots, lengths, cu_q, tokens);
    if (how.ranks > 1) {
      run_sharded(ranks, problem.config, device);
    } else {
      ranks[0].append();
      ranks[0].attend_to_summaries();
      ranks[0].select();
      ranks[0].attend_to_tokens();
    }
    device.synchronize(Stream{});
    ranks[0].collect(result);
    lengths = after;
  }
}

class DecodeProblem {
 public:
  DecodeProblem(Problem problem, DType dtype) : problem_(rounded(std::move(problem), dtype)), dtype_(dtype) {
    if (problem_.shared_k) problem_.inputs.k.slc = problem_.inputs.k.win = problem_.inputs.k.cmp;
    if (problem_.shared_v) problem_.inputs.v.slc = problem_.inputs.v.win = problem_.inputs.v.cmp;
    problem_.shared_k = problem_.shared_v = false;
  }
  const Problem& problem() const { return problem_; }

  void check(const DecodeResult& found) const {
    const Truth truth(problem_, dtype_, found.selected);
    ASSERT_TRUE(truth.selection_is_right());
    ASSERT_TRUE(truth.out_agrees(found.out));
    const OracleForward plain = oracle_forward(problem_, {dtype_, true}, &found.selected);
    ASSERT_TRUE(log_sum_exp_agrees(found.lse_cmp, truth.forward().lse_cmp, plain.lse_cmp, dtype_));
    ASSERT_TRUE(log_sum_exp_agrees(found.lse_slc, truth.forward().lse_slc, plain.lse_slc, dtype_));
    ASSERT_TRUE(log_sum_exp_agrees(found.lse_win, truth.forward().lse_win, plain.lse_win, dtype_));
  }

 private:
  Problem problem_;
  DType dtype_;
};

void expect_same_bits(const DecodeResult& a, const DecodeResult& b) {
  ASSERT_EQ(a.selected, b.selected);
  ASSERT_EQ(a.out, b.out);
  ASSERT_EQ(a.lse_cmp, b.lse_cmp);
  ASSERT_EQ(a.lse_slc, b.lse_slc);
  ASSERT_EQ(a.lse_win, b.lse_win);
}

/// Random problems, and larger ones whose numbers of heads, dimensions and documents are given.
std::vector<Problem> decode_problems(const DeviceBackend& backend) {
  std::vector<Problem> problems;
  for (const std::uint64_t seed : seeds(6)) problems.push_back(random_problem(6100 + seed, 100, backend.dim_step));
  std::uint64_t seed = 700;
  for (const Compressor compressor : {Compressor::mlp, Compressor::linear, Compressor::mean}) {
    Config config;
    config.num_q_heads = compressor == Compressor::mlp ? 32 : 6, config.num_kv_heads = 2;
    config.head_dim_qk = compressor == Compressor::linear ? 192 : 64, config.head_dim_v = 64;
    config.compress_block = 8, config.compress_stride = 4, config.select_block = 8, config.select_count = 5;
    config.window = 20;
    config.compressor = compressor;
    config.compress_hidden_k = config.compress_hidden_v = 40;
    problems.push_back(make_problem(config, {0, 3, 60, 150}, seed++, {.shared_k = false, .shared_v = false}));
  }
  return problems;
}

TEST_P(DecodeOps, AgreeWithForward) {
  for (const DType dtype : GetParam().dtypes)
    for (const Problem& given : decode_problems(GetParam())) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(given));
      const DecodeProblem problem(given, dtype);
      const Config& config = problem.problem().config;
      const DecodeCase one_by_one{config.select_block, 4, 1, 1, 1};
      const DecodeCase pieces{2 * config.select_block, 7, 1, 2, 40};
      const DecodeResult found = decode_all(problem.problem(), dtype, pieces, device());
      problem.check(found);
      if (HasFatalFailure()) return;
      if (GetParam().zero_masked || dtype == DType::f64) {
        expect_same_bits(decode_all(problem.problem(), dtype, one_by_one, device()), found);
        if (HasFatalFailure()) return;
      }
    }
}

/// A window and a selection that hold more than a sequence ever has, cut into parts of which some are empty; more heads
/// than a thread block attends for at once.
Problem problem_with_long_window(std::int64_t heads, std::int64_t tokens) {
  Config config;
  config.num_q_heads = heads, config.num_kv_heads = 1, config.head_dim_qk = config.head_dim_v = 64;
  config.compress_block = 8, config.compress_stride = 8, config.select_block = 32, config.select_count = 40;
  config.window = 5000;
  config.compressor = Compressor::mean;
  return make_problem(config, {0, 1, tokens}, 760, {.shared_k = false, .shared_v = false});
}

TEST_P(DecodeOps, AgreeWithForwardWhereTheWindowIsLongerThanTheSequence) {
  const DType dtype = GetParam().dtypes.front();
  for (const Problem& given : {problem_with_long_window(20, 160), problem_with_long_window(40, 20)}) {
    SCOPED_TRACE(describe(given));
    const DecodeProblem problem(given, dtype);
    const DecodeResult found = decode_all(problem.problem(), dtype, {64, 7, 1, 2, 100}, device());
    problem.check(found);
    if (HasFatalFailure()) return;
    if (GetParam().zero_masked || dtype == DType::f64) {
      expect_same_bits(decode_all(problem.problem(), dtype, {32, 3, 1, 5, 150}, device()), found);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(DecodeOps, ShardedAgreeWithForward) {
  for (const DType dtype : GetParam().dtypes)
    for (const Problem& given : decode_problems(GetParam())) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(given));
      const DecodeProblem problem(given, dtype);
      const DecodeCase pieces{problem.problem().config.select_block, 5, 3, 3, 40};
      problem.check(decode_all(problem.problem(), dtype, pieces, device()));
      if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace cpnsa::test
