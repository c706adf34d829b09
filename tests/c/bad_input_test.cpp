// Whatever C hands over: a status and the library's own message, never a crash, and nothing written.

#include <gmock/gmock.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpnsa/partition.hpp"
#include "tests/c/convert.hpp"

namespace cpnsa::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

#define EXPECT_STATUS(expected, call, text)  \
  do {                                       \
    EXPECT_EQ(call, expected);               \
    EXPECT_THAT(cpnsa_last_error(), (text)); \
  } while (false)

constexpr std::int64_t tokens = 40;

cpnsa_config small_config() {
  cpnsa_config config = CPNSA_CONFIG_INIT;
  config.num_q_heads = 2, config.num_kv_heads = 1, config.head_dim_qk = config.head_dim_v = 4;
  config.compress_block = config.select_block = 8, config.compress_stride = 4, config.select_count = 3;
  config.window = 6;
  config.compressor = CPNSA_COMPRESSOR_MEAN;
  return config;
}

/// Host memory aligned as the library asks for, of NaNs.
class Floats {
 public:
  explicit Floats(std::size_t count) : memory_(count + 64, std::numeric_limits<float>::quiet_NaN()) {}
  float* data() {
    void* place = memory_.data();
    std::size_t space = memory_.size() * sizeof(float);
    return static_cast<float*>(std::align(256, 4, place, space));
  }
  bool untouched() const {
    return std::all_of(memory_.begin(), memory_.end(), [](float value) { return std::isnan(value); });
  }

 private:
  std::vector<float> memory_;
};

/// Everything that one rank of a valid step takes; a test spoils one thing.
struct Step {
  explicit Step(cpnsa_communicator communicator_) : communicator(communicator_) {
    const std::int64_t bounds[] = {0, tokens};
    int ranks = 0;
    check_c(cpnsa_communicator_ranks(communicator, &ranks));
    check_c(cpnsa_device_create_cpu(&device));
    check_c(cpnsa_partition_create(CPNSA_PARTITION_ZIGZAG, bounds, 2, 8, ranks, &partition));
    check_c(cpnsa_communicator_set_deadline(communicator, 20'000));
  }
  ~Step() {
    for (const auto status : {cpnsa_attention_destroy(attention), cpnsa_saved_destroy(saved),
                              cpnsa_partition_destroy(partition), cpnsa_device_destroy(device)})
      EXPECT_EQ(status, CPNSA_SUCCESS);
  }

  cpnsa_status create() {
    const cpnsa_status status = cpnsa_attention_create(&config, &options, partition, device, communicator, &attention);
    if (status == CPNSA_SUCCESS) prepare();
    return status;
  }
  cpnsa_status forward() { return cpnsa_forward(attention, &inputs, &out, nullptr, saved, workspace->data(), nullptr); }
  cpnsa_status backward() {
    return cpnsa_backward(attention, &inputs, &dout, saved, &gradients, workspace->data(), nullptr);
  }

  cpnsa_config config = small_config();
  cpnsa_options options = CPNSA_OPTIONS_INIT;
  cpnsa_communicator communicator = nullptr;
  cpnsa_device device = nullptr;
  cpnsa_partition partition = nullptr;
  cpnsa_attention attention = nullptr;
  cpnsa_saved saved = nullptr;
  cpnsa_tensors inputs = CPNSA_TENSORS_INIT, gradients = CPNSA_TENSORS_INIT;
  cpnsa_tensor out = CPNSA_TENSOR_NONE, dout = CPNSA_TENSOR_NONE;
  std::unique_ptr<Floats> out_memory, workspace;

 private:
  void prepare() {
    std::size_t workspace_bytes = 0, saved_bytes = 0;
    check_c(cpnsa_attention_sizes(attention, &rows_, &workspace_bytes, &saved_bytes));
    workspace = std::make_unique<Floats>(workspace_bytes / sizeof(float) + 1);
    saved_memory_ = std::make_unique<Floats>(saved_bytes / sizeof(float) + 1);
    check_c(cpnsa_saved_create(saved_memory_->data(), &saved));
    inputs.q = ones(2, 4), gradients.q = ones(2, 4);
    inputs.gate = ones(2, 3), gradients.gate = ones(2, 3);
    inputs.k.cmp = inputs.k.slc = inputs.k.win = ones(1, 4);
    inputs.v.cmp = inputs.v.slc = inputs.v.win = ones(1, 4);
    gradients.k.cmp = gradients.k.slc = gradients.k.win = ones(1, 4);
    gradients.v.cmp = gradients.v.slc = gradients.v.win = ones(1, 4);
    dout = out = ones(2, 4);
    out_memory = std::make_unique<Floats>(static_cast<std::size_t>(rows_ * 2 * 4));
    out.data = out_memory->data();
  }
  cpnsa_tensor ones(std::int64_t heads, std::int64_t dim) {
    memory_.push_back(std::make_unique<std::vector<float>>(static_cast<std::size_t>(rows_ * heads * dim) + 1, 1.0f));
    return {memory_.back()->data(), CPNSA_F32, 3, {rows_, heads, dim, 0}};
  }

  std::int64_t rows_ = 0;
  std::unique_ptr<Floats> saved_memory_;
  std::vector<std::unique_ptr<std::vector<float>>> memory_;
};

/// One rank, alone.
class CBadInput : public testing::Test {
 protected:
  void SetUp() override {
    check_c(cpnsa_communicator_create_threads(1, &communicator));
    step = std::make_unique<Step>(communicator);
  }
  void TearDown() override {
    step.reset();
    EXPECT_EQ(cpnsa_communicator_destroy(communicator), CPNSA_SUCCESS);
  }

  cpnsa_communicator communicator = nullptr;
  std::unique_ptr<Step> step;
};

/// Runs the body as each of the ranks, which share nothing but their communicators.
void on_ranks(int ranks, const std::function<void(int, Step&)>& body) {
  std::vector<cpnsa_communicator> communicators(static_cast<std::size_t>(ranks));
  check_c(cpnsa_communicator_create_threads(ranks, communicators.data()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Step step(communicators[static_cast<std::size_t>(rank)]);
      body(rank, step);
    });
  for (std::thread& thread : threads) thread.join();
  for (const cpnsa_communicator communicator : communicators) check_c(cpnsa_communicator_destroy(communicator));
}

TEST_F(CBadInput, TheStepThatTheTestsSpoilIsRight) {
  check_c(step->create());
  check_c(step->forward());
  check_c(step->backward());
  const auto* values = static_cast<const float*>(step->out.data);
  for (std::int64_t i = 0; i < tokens * 8; ++i) EXPECT_TRUE(std::isfinite(values[i])) << i;
}

TEST_F(CBadInput, VersionAndNames) {
  int major = -1, minor = -1, patch = -1;
  EXPECT_EQ(cpnsa_version(&major, &minor, &patch), CPNSA_SUCCESS);
  EXPECT_EQ(cpnsa_version(nullptr, nullptr, nullptr), CPNSA_SUCCESS);
  EXPECT_EQ(major, CPNSA_VERSION_MAJOR);
  EXPECT_EQ(minor, CPNSA_VERSION_MINOR);
  EXPECT_EQ(patch, CPNSA_VERSION_PATCH);
  EXPECT_STREQ(cpnsa_status_name(CPNSA_ERROR_HANDLE), "CPNSA_ERROR_HANDLE");
  EXPECT_STREQ(cpnsa_status_name(-7), "?");
  EXPECT_STREQ(cpnsa_traffic_name(0), "summaries");
  EXPECT_EQ(cpnsa_traffic_name(-1), nullptr);
  EXPECT_EQ(cpnsa_traffic_name(16), nullptr);
  EXPECT_NE(cpnsa_stage_name(0), nullptr);
  EXPECT_EQ(cpnsa_stage_name(32), nullptr);
}

TEST_F(CBadInput, HandlesThatAreNone) {
  check_c(step->create());
  const auto none = [](auto status) {
    EXPECT_STATUS(CPNSA_ERROR_HANDLE, status, HasSubstr("expected a handle of a living"));
  };
  // Of objects that were destroyed, of other kinds, NULL and arbitrary.
  cpnsa_communicator gone = nullptr;
  check_c(cpnsa_communicator_create_threads(1, &gone));
  check_c(cpnsa_communicator_destroy(gone));
  int number = 0;
  char byte = 0;
  for (const auto handle : {gone, reinterpret_cast<cpnsa_communicator>(step->device), cpnsa_communicator{},
                            reinterpret_cast<cpnsa_communicator>(&byte)}) {
    none(cpnsa_communicator_rank(handle, &number));
    none(cpnsa_communicator_ranks(handle, &number));
    none(cpnsa_communicator_barrier(handle));
    none(cpnsa_communicator_abort(handle, "nothing"));
    none(cpnsa_communicator_set_deadline(handle, 5));
    if (handle) none(cpnsa_communicator_destroy(handle));
  }
  none(cpnsa_communicator_destroy(gone));

  const auto attention = step->attention;
  check_c(cpnsa_attention_destroy(attention));
  cpnsa_statistics statistics = CPNSA_STATISTICS_INIT;
  none(step->forward());
  none(step->backward());
  none(cpnsa_attention_sizes(attention, nullptr, nullptr, nullptr));
  none(cpnsa_attention_statistics(attention, &statistics));
  none(cpnsa_attention_destroy(attention));
  step->attention = nullptr;

  const auto saved = step->saved;
  check_c(step->create());
  check_c(cpnsa_saved_destroy(saved));
  cpnsa_saved fresh = step->saved;
  step->saved = saved;
  none(step->forward());
  none(step->backward());
  step->saved = fresh;
  EXPECT_TRUE(step->out_memory->untouched());

  cpnsa_partition partition = step->partition;
  cpnsa_attention never = nullptr;
  check_c(cpnsa_partition_destroy(partition));
  std::int64_t count = 0;
  none(cpnsa_partition_tokens(partition, 0, &count));
  none(cpnsa_attention_create(&step->config, &step->options, partition, step->device, communicator, &never));
  step->partition = nullptr;
  EXPECT_EQ(never, nullptr);
  none(cpnsa_device_destroy(reinterpret_cast<cpnsa_device>(communicator)));
}

TEST_F(CBadInput, ALayerOutlivesTheHandlesOfWhatItWasMadeWith) {
  check_c(step->create());
  check_c(cpnsa_device_destroy(step->device));
  check_c(cpnsa_partition_destroy(step->partition));
  check_c(cpnsa_communicator_destroy(communicator));
  check_c(step->forward());
  check_c(step->backward());
  step->device = nullptr, step->partition = nullptr;
  check_c(cpnsa_communicator_create_threads(1, &communicator));
}

TEST_F(CBadInput, NullWhereThereMustBeSomething) {
  const auto null = [](auto status, const char* name) {
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, status, HasSubstr(std::string(name) + ": found NULL"));
  };
  null(cpnsa_device_create_cpu(nullptr), "device");
  null(cpnsa_communicator_create_threads(2, nullptr), "communicators");
  null(cpnsa_communicator_rank(communicator, nullptr), "rank");
  null(cpnsa_communicator_ranks(communicator, nullptr), "ranks");
  null(cpnsa_saved_create(&communicator, nullptr), "saved");
  null(cpnsa_partition_create(1, nullptr, 2, 8, 1, &step->partition), "cu_seqlens");
  const std::int64_t bounds[] = {0, tokens};
  check_c(cpnsa_partition_create(1, bounds, 2, 8, 1, &step->partition));
  null(cpnsa_partition_create(1, bounds, 2, 8, 1, nullptr), "partition");
  null(cpnsa_partition_create_custom(bounds, 2, 8, 1, nullptr, nullptr, nullptr), "partition");
  null(cpnsa_partition_tokens(step->partition, 0, nullptr), "tokens");
  null(cpnsa_partition_global_rows(step->partition, 0, nullptr, 100), "tokens");
  null(cpnsa_partition_ranges(step->partition, 0, nullptr, 0, nullptr), "count");
  null(cpnsa_partition_scatter(step->partition, 0, nullptr, nullptr, 4), "packed");
  null(cpnsa_partition_gather(step->partition, 0, nullptr, nullptr, 4), "local");
  const auto make = [&](const cpnsa_config* config, const cpnsa_options* options, cpnsa_attention* out) {
    return cpnsa_attention_create(config, options, step->partition, step->device, communicator, out);
  };
  null(make(nullptr, &step->options, &step->attention), "config");
  null(make(&step->config, nullptr, &step->attention), "options");
  null(make(&step->config, &step->options, nullptr), "attention");
  check_c(step->create());
  null(cpnsa_forward(step->attention, nullptr, &step->out, nullptr, step->saved, step->workspace->data(), nullptr),
       "inputs");
  null(cpnsa_forward(step->attention, &step->inputs, nullptr, nullptr, step->saved, step->workspace->data(), nullptr),
       "out");
  null(cpnsa_backward(step->attention, &step->inputs, &step->dout, nullptr, &step->gradients, step->workspace->data(),
                      nullptr),
       "saved");
  null(cpnsa_backward(step->attention, &step->inputs, &step->dout, step->saved, nullptr, step->workspace->data(),
                      nullptr),
       "gradients");
  null(cpnsa_attention_statistics(step->attention, nullptr), "statistics");
  EXPECT_STATUS(
      CPNSA_ERROR_ARGUMENT,
      cpnsa_forward(step->attention, &step->inputs, &step->out, nullptr, nullptr, step->workspace->data(), nullptr),
      HasSubstr("saved: found none"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT,
                cpnsa_forward(step->attention, &step->inputs, &step->out, nullptr, step->saved, nullptr, nullptr),
                HasSubstr("workspace"));
  EXPECT_TRUE(step->out_memory->untouched());
}

TEST_F(CBadInput, StructsOfOtherSizes) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, sizeof(cpnsa_config) - 1, ~std::size_t{0}}) {
    step->config.struct_size = size;
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->create(), HasSubstr("config.struct_size"));
  }
  step->config.struct_size = sizeof(cpnsa_config);
  step->options.struct_size = 4;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->create(), HasSubstr("options.struct_size"));
  step->options.struct_size = sizeof(cpnsa_options);
  check_c(step->create());
  step->inputs.struct_size = 0;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->forward(), HasSubstr("inputs.struct_size"));
  step->inputs.struct_size = sizeof(cpnsa_tensors);
  step->gradients.struct_size = 0;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->backward(), HasSubstr("gradients.struct_size"));
  cpnsa_statistics statistics = CPNSA_STATISTICS_INIT;
  statistics.struct_size = 16;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_attention_statistics(step->attention, &statistics),
                HasSubstr("statistics.struct_size"));
}

// A program built with a later header: what this library does not know of may be there, but must not be used.
TEST_F(CBadInput, StructsOfLaterVersions) {
  struct {
    cpnsa_config known;
    std::int64_t unknown[3];
  } later{step->config, {0, 0, 0}};
  later.known.struct_size = sizeof later;
  const auto create = [&] {
    return cpnsa_attention_create(&later.known, &step->options, step->partition, step->device, communicator,
                                  &step->attention);
  };
  check_c(create());
  check_c(cpnsa_attention_destroy(step->attention));
  later.unknown[2] = 1;
  EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, create(), HasSubstr("newer version"));
  EXPECT_EQ(step->attention, nullptr);

  check_c(step->create());
  struct {
    cpnsa_statistics known;
    std::int64_t unknown;
  } statistics{CPNSA_STATISTICS_INIT, 42};
  statistics.known.struct_size = sizeof statistics;
  check_c(cpnsa_attention_statistics(step->attention, &statistics.known));
  EXPECT_EQ(statistics.unknown, 42);
  EXPECT_GT(statistics.known.workspace_bytes, 0);
}

TEST_F(CBadInput, NumbersThatAreNoneOfAnEnum) {
  const auto refused = [&](std::int32_t& member, std::int32_t value, const char* name) {
    const std::int32_t right = std::exchange(member, value);
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->create(), AllOf(HasSubstr(name), HasSubstr("expected")));
    EXPECT_EQ(step->attention, nullptr);
    member = right;
  };
  for (const std::int32_t value : {-1, 99}) {
    refused(step->config.compressor, value, "compressor: found");
    refused(step->config.activation, value, "activation: found");
    refused(step->config.gate, value, "gate: found");
    refused(step->options.dtype, value, "dtype: found");
    refused(step->options.exchange, value, "exchange: found");
    refused(step->options.gradient_dtype, value, "gradient_dtype: found");
    refused(step->options.backward, value, "backward: found");
    refused(step->options.timing, value, "timing: found");
  }
  refused(step->options.dtype, 0, "expected one of 1 (f64)");
  const std::int64_t bounds[] = {0, tokens};
  cpnsa_partition partition = nullptr;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_create(4, bounds, 2, 8, 1, &partition),
                HasSubstr("kind: found 4"));
}

TEST_F(CBadInput, ConfigurationsThatBreakTheRules) {
  step->config.num_q_heads = 0;
  EXPECT_STATUS(CPNSA_ERROR_CONFIG, step->create(), HasSubstr("num_q_heads"));
  step->config = small_config();
  step->config.compress_stride = 3;
  EXPECT_STATUS(CPNSA_ERROR_CONFIG, step->create(), HasSubstr("compress_stride"));
  step->config = small_config();
  step->config.softmax_scale = std::numeric_limits<double>::quiet_NaN();
  EXPECT_STATUS(CPNSA_ERROR_CONFIG, step->create(), HasSubstr("softmax_scale"));
}

TEST_F(CBadInput, TensorsThatDoNotFit) {
  check_c(step->create());
  const auto refused = [&](cpnsa_tensor& member, const std::function<void(cpnsa_tensor&)>& spoil, const char* text) {
    const cpnsa_tensor right = member;
    spoil(member);
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->forward(), HasSubstr(text));
    member = right;
  };
  cpnsa_tensors& inputs = step->inputs;
  refused(
      inputs.q, [](cpnsa_tensor& q) { q = CPNSA_TENSOR_NONE; }, "q: found no tensor");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.data = nullptr; }, "q");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.dtype = 0; }, "q.dtype: found 0");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.dtype = CPNSA_F64; }, "q: found f64");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.shape[0] += 1; }, "q: found f32 [41");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.shape[0] = -1; }, "q: found f32 [-1");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.rank = 5; }, "q.rank: found 5");
  refused(
      inputs.q, [](cpnsa_tensor& q) { q.rank = -1; }, "q.rank: found -1");
  refused(
      inputs.k.slc, [](cpnsa_tensor& k) { k.rank = 2; }, "k_slc: found");
  refused(
      inputs.v.win, [](cpnsa_tensor& v) { v.shape[2] = 5; }, "v_win: found");
  refused(
      inputs.gate, [](cpnsa_tensor& gate) { gate.shape[2] = 2; }, "gate: found");
  refused(
      inputs.compress_k.w1, [&](cpnsa_tensor& w1) { w1 = inputs.q; }, "compress_k_w1: found");
  refused(
      step->out, [](cpnsa_tensor& out) { out.shape[1] = 3; }, "out: found");
  EXPECT_TRUE(step->out_memory->untouched());

  check_c(step->forward());
  const auto gradient_refused = [&](cpnsa_tensor& member, const char* text) {
    const cpnsa_tensor right = std::exchange(member, cpnsa_tensor CPNSA_TENSOR_NONE);
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->backward(), HasSubstr(text));
    member = right;
  };
  gradient_refused(step->gradients.q, "dq: found no tensor");
  gradient_refused(step->gradients.v.slc, "dv_slc: found no tensor");
  gradient_refused(step->dout, "dout: found no tensor");
  check_c(step->backward());
}

TEST_F(CBadInput, ABackwardWithoutItsForward) {
  check_c(step->create());
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->backward(), HasSubstr("saved: found none"));
}

TEST_F(CBadInput, Partitions) {
  const auto make = [](std::vector<std::int64_t> bounds, std::int64_t block, int ranks) {
    cpnsa_partition partition = nullptr;
    const cpnsa_status status =
        cpnsa_partition_create(CPNSA_PARTITION_CONTIGUOUS, bounds.data(), bounds.size(), block, ranks, &partition);
    EXPECT_EQ(partition, nullptr);
    return status;
  };
  const std::int64_t bounds[] = {0, tokens};
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 10}, 8, 0), HasSubstr("ranks: found 0"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 10}, 0, 2), HasSubstr("select_block"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({1, 10}, 8, 2), HasSubstr("cu_seqlens"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0}, 8, 2), HasSubstr("cu_seqlens"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 9, 8}, 8, 2), HasSubstr("cu_seqlens"));
  std::int64_t count = 0;
  for (const int rank : {-1, 1})
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_tokens(step->partition, rank, &count),
                  HasSubstr("rank: found"));
  std::vector<std::int64_t> rows(tokens, -1);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_global_rows(step->partition, 0, rows.data(), tokens - 1),
                HasSubstr("capacity: found 39, expected 40"));
  EXPECT_EQ(rows[0], -1);
  const cpnsa_range ranges[] = {{0, 16}, {16, 41}};
  const std::size_t counts[] = {1, 1};
  cpnsa_partition partition = nullptr;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_create_custom(bounds, 2, 8, 2, ranges, counts, &partition),
                HasSubstr("rank 1"));
}

TEST_F(CBadInput, PartitionsAreTheLibrarys) {
  const std::vector<std::int64_t> bounds{0, 30, 100, 101};
  using Make = Partition (*)(std::span<const std::int64_t>, std::int64_t, int);
  for (const auto& [kind, make] : {std::pair<int, Make>{CPNSA_PARTITION_CONTIGUOUS, &Partition::contiguous},
                                   {CPNSA_PARTITION_ZIGZAG, &Partition::zigzag},
                                   {CPNSA_PARTITION_ZIGZAG_PER_DOCUMENT, &Partition::zigzag_per_document}}) {
    const Partition expected = make(bounds, 8, 3);
    cpnsa_partition partition = nullptr;
    check_c(cpnsa_partition_create(kind, bounds.data(), bounds.size(), 8, 3, &partition));
    std::vector<int> packed(101), back(101, -1);
    std::iota(packed.begin(), packed.end(), 0);
    for (int rank = 0; rank < 3; ++rank) {
      std::int64_t count = -1;
      check_c(cpnsa_partition_tokens(partition, rank, &count));
      ASSERT_EQ(count, expected.local_tokens(rank));
      std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
      check_c(cpnsa_partition_global_rows(partition, rank, rows.data(), rows.size()));
      EXPECT_EQ(rows, expected.global_rows(rank));
      std::vector<int> local(rows.size(), -1);
      check_c(cpnsa_partition_scatter(partition, rank, packed.data(), local.data(), sizeof(int)));
      EXPECT_TRUE(std::equal(local.begin(), local.end(), rows.begin(), rows.end()));
      check_c(cpnsa_partition_gather(partition, rank, local.data(), back.data(), sizeof(int)));
      std::size_t pieces = 0;
      check_c(cpnsa_partition_ranges(partition, rank, nullptr, 0, &pieces));
      std::vector<cpnsa_range> ranges(pieces);
      check_c(cpnsa_partition_ranges(partition, rank, ranges.data(), pieces, &pieces));
      ASSERT_EQ(ranges.size(), expected.ranges(rank).size());
      for (std::size_t i = 0; i < pieces; ++i)
        EXPECT_EQ((TokenRange{ranges[i].begin, ranges[i].end}), expected.ranges(rank)[i]);
    }
    EXPECT_EQ(back, packed);
    check_c(cpnsa_partition_destroy(partition));
  }
}

TEST_F(CBadInput, Communicators) {
  cpnsa_communicator made = communicator;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_threads(0, &made), HasSubstr("ranks: found 0"));
  cpnsa_callbacks callbacks = CPNSA_CALLBACKS_INIT;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, &callbacks, &made),
                HasSubstr("found no exchange"));
  EXPECT_EQ(made, nullptr);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, nullptr, &made),
                HasSubstr("callbacks: found NULL"));
  callbacks.struct_size = 1;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, &callbacks, &made),
                HasSubstr("callbacks.struct_size"));
  for (const std::int64_t deadline : {std::int64_t{0}, std::int64_t{-5}, std::numeric_limits<std::int64_t>::max()})
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_set_deadline(communicator, deadline),
                  HasSubstr("milliseconds: found"));
  check_c(cpnsa_communicator_abort(communicator, nullptr));
  EXPECT_STATUS(CPNSA_ERROR_COMMUNICATION, cpnsa_communicator_barrier(communicator), HasSubstr("no reason given"));
}

TEST_F(CBadInput, WhatTheBuildLacks) {
  cpnsa_device device = nullptr;
  cpnsa_communicator made = nullptr;
  char id[CPNSA_NCCL_UNIQUE_ID_BYTES] = {};
  if (!cpnsa_has_cuda())
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_device_create_cuda(0, &device), HasSubstr("built without CUDA"));
  if (!cpnsa_has_nccl()) {
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_nccl_unique_id(id), HasSubstr("built without NCCL"));
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_communicator_create_nccl(id, 0, 1, &made), HasSubstr("without NCCL"));
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_communicator_borrow_nccl(id, &made), HasSubstr("without NCCL"));
  } else {
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_borrow_nccl(nullptr, &made), HasSubstr("null ncclComm_t"));
  }
  EXPECT_EQ(device, nullptr);
  EXPECT_EQ(made, nullptr);
}

TEST_F(CBadInput, CallbacksThatFail) {
  struct User {
    int returns;
    int aborts = 0;
  };
  cpnsa_callbacks callbacks = CPNSA_CALLBACKS_INIT;
  callbacks.exchange = [](void* user, auto...) { return static_cast<User*>(user)->returns; };
  callbacks.all_gather = [](void* user, void*, std::size_t) { return static_cast<User*>(user)->returns; };
  callbacks.abort = [](void* user, const char*) { ++static_cast<User*>(user)->aborts; };
  callbacks.error_text = [](void*) { return "the network is down"; };
  for (const auto& [returns, status] : {std::pair{3, CPNSA_ERROR_COMMUNICATION},
                                        {-1, CPNSA_ERROR_COMMUNICATION},
                                        {CPNSA_ERROR_MISMATCH, CPNSA_ERROR_MISMATCH},
                                        {CPNSA_ERROR_DEADLINE, CPNSA_ERROR_DEADLINE}}) {
    User user{returns};
    callbacks.user = &user;
    cpnsa_communicator failing = nullptr;
    check_c(cpnsa_communicator_create_callbacks(1, 2, &callbacks, &failing));
    const auto text = AllOf(HasSubstr("rank 1 of 2"), HasSubstr("barrier"), HasSubstr("the network is down"));
    EXPECT_STATUS(status, cpnsa_communicator_barrier(failing), text);
    EXPECT_STATUS(status, cpnsa_communicator_barrier(failing), text);
    EXPECT_EQ(user.aborts, 1);
    check_c(cpnsa_communicator_destroy(failing));
  }
}

TEST_F(CBadInput, LastErrorIsTheThreadsOwn) {
  EXPECT_NE(cpnsa_communicator_barrier(nullptr), CPNSA_SUCCESS);
  const std::string here = cpnsa_last_error();
  EXPECT_THAT(here, HasSubstr("cpnsa_communicator_barrier: communicator: found NULL"));
  std::thread([] { EXPECT_STREQ(cpnsa_last_error(), ""); }).join();
  check_c(cpnsa_communicator_barrier(communicator));
  EXPECT_EQ(here, cpnsa_last_error());
}

// What only this interface can see on one rank reaches the other all the same, and the next call is none the worse.
TEST(CRanks, AMistakeOnOneRankIsAnErrorOnEvery) {
  on_ranks(2, [](int rank, Step& step) {
    step.options.dtype = rank == 1 ? 99 : CPNSA_F32;
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.create(), HasSubstr("dtype: found 99"));
    step.options.dtype = CPNSA_F32;
    const cpnsa_partition partition = step.partition;
    if (rank == 0) step.partition = nullptr;
    EXPECT_STATUS(rank == 0 ? CPNSA_ERROR_HANDLE : CPNSA_ERROR_ARGUMENT, step.create(), HasSubstr("partition"));
    step.partition = partition;
    check_c(step.create());

    const cpnsa_saved saved = step.saved;
    for (int repetition = 0; repetition < 2; ++repetition) {
      if (rank == 1) step.inputs.struct_size = 3;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.forward(), HasSubstr("inputs.struct_size"));
      step.inputs.struct_size = sizeof(cpnsa_tensors);
      EXPECT_TRUE(step.out_memory->untouched() || repetition > 0);
      if (rank == 0) step.inputs.k.win.dtype = 17;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.forward(), HasSubstr("k_win.dtype"));
      if (rank == 0) step.inputs.k.win.dtype = CPNSA_F32;
      check_c(step.forward());
      if (rank == 0) step.saved = nullptr;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.backward(), HasSubstr("saved: found NULL"));
      step.saved = saved;
      check_c(step.backward());
    }
  });
}

TEST(CRanks, RanksThatDisagree) {
  on_ranks(2, [](int rank, Step& step) {
    step.config.window = 6 + rank;
    EXPECT_STATUS(CPNSA_ERROR_MISMATCH, step.create(), HasSubstr("window=7"));
    step.config.window = 6;
    check_c(step.create());
    check_c(step.forward());
    EXPECT_STATUS(CPNSA_ERROR_MISMATCH, rank == 0 ? step.forward() : step.backward(), HasSubstr("backward"));
  });
}

TEST(CRanks, AnAbortReleasesAndADeadlineEnds) {
  on_ranks(2, [](int rank, Step& step) {
    if (rank == 1) {
      check_c(cpnsa_communicator_abort(step.communicator, "the disk is full"));
      return;
    }
    EXPECT_STATUS(CPNSA_ERROR_COMMUNICATION, step.create(), HasSubstr("the disk is full"));
  });
  std::atomic<bool> waited = false;
  on_ranks(2, [&](int rank, Step& step) {
    if (rank == 1) {
      while (!waited) std::this_thread::yield();
      return;
    }
    check_c(cpnsa_communicator_set_deadline(step.communicator, 50));
    EXPECT_STATUS(CPNSA_ERROR_DEADLINE, step.create(), HasSubstr("rank 1"));
    waited = true;
  });
}

// Rank 0 waits in a barrier that rank 1 does not enter before rank 0's other thread was refused.
TEST(CRanks, OneThreadAtATime) {
  std::atomic<bool> refused = false;
  on_ranks(2, [&](int rank, Step& step) {
    if (rank == 1) {
      while (!refused) std::this_thread::yield();
      check_c(cpnsa_communicator_barrier(step.communicator));
      return;
    }
    std::thread other([&] {
      for (;;) {
        const cpnsa_status status = cpnsa_communicator_set_deadline(step.communicator, 20'000);
        if (status == CPNSA_SUCCESS) continue;
        EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, status, HasSubstr("one at a time"));
        refused = true;
        return;
      }
    });
    while (!refused && cpnsa_communicator_barrier(step.communicator) != CPNSA_SUCCESS) {
    }
    other.join();
  });
}

}  // namespace
}  // namespace cpnsa::test
