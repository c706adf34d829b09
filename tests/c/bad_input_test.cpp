// Whatever C hands over: a status and the library's own message, never a crash, and nothing written.

#include <cstring>
#include <string>
#include <thread>

#include "tests/c/step.hpp"

namespace cpnsa::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

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

TEST_F(CBadInput, InfoSaysWhatTheLibraryIs) {
  cpnsa_info info = CPNSA_INFO_INIT;
  check_c(cpnsa_get_info(&info));
  EXPECT_EQ(std::string(info.version), std::to_string(CPNSA_VERSION_MAJOR) + "." + std::to_string(CPNSA_VERSION_MINOR) +
                                           "." + std::to_string(CPNSA_VERSION_PATCH));
  EXPECT_NE(std::string(info.commit), "");
  EXPECT_NE(std::string(info.compiler), "");
  EXPECT_EQ(std::string(info.cuda_compiled).empty(), !cpnsa_has_cuda());
  EXPECT_EQ(std::string(info.nccl_compiled).empty(), !cpnsa_has_nccl());
  info.struct_size = 3;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_get_info(&info), HasSubstr("struct_size"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_get_info(nullptr), HasSubstr("info: found NULL"));
}

TEST_F(CBadInput, KernelsOfALayer) {
  cpnsa_config config = CPNSA_CONFIG_INIT;
  config.num_q_heads = 64, config.num_kv_heads = 4, config.head_dim_qk = 128, config.head_dim_v = 128;
  std::size_t count = 99;
  const cpnsa_status status = cpnsa_get_kernels(&config, CPNSA_BF16, 90, nullptr, 0, &count);
  if (!cpnsa_has_cuda()) {
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, status, HasSubstr("built without CUDA"));
    EXPECT_EQ(count, 0u);
    return;
  }
  check_c(status);
  ASSERT_GT(count, 0u);
  std::vector<cpnsa_kernel> kernels(count);
  check_c(cpnsa_get_kernels(&config, CPNSA_BF16, 90, kernels.data(), kernels.size(), &count));
  for (const cpnsa_kernel& kernel : kernels) EXPECT_STREQ(kernel.family, "hopper") << kernel.op;
  check_c(cpnsa_get_kernels(&config, CPNSA_BF16, 80, kernels.data(), kernels.size(), &count));
  for (const cpnsa_kernel& kernel : kernels) EXPECT_STREQ(kernel.family, "portable") << kernel.op;
  EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_get_kernels(&config, CPNSA_F64, 90, nullptr, 0, &count),
                HasSubstr("dtype f64"));
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

// A program built with an earlier header, whose struct ends before reuse_saved: what lies behind it is not read.
TEST_F(CBadInput, StructsOfEarlierVersions) {
  step->options.struct_size = offsetof(cpnsa_options, reuse_saved);
  step->options.reuse_saved = 77;  // no bool
  check_c(step->create());
  step->options.struct_size = sizeof(cpnsa_options);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->create(), HasSubstr("reuse_saved"));
  step->options.struct_size = offsetof(cpnsa_options, reuse_saved) - 4;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step->create(), HasSubstr("options.struct_size"));
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
    refused(step->options.parameter_gradient_dtype, value, "parameter_gradient_dtype: found");
    refused(step->options.backward, value, "backward: found");
    refused(step->options.timing, value, "timing: found");
    refused(step->config.branches, value, "branches: found");
    refused(step->options.sinks, value, "sinks: found");
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
TEST_F(CBadInput, LastErrorIsTheThreadsOwn) {
  EXPECT_NE(cpnsa_communicator_barrier(nullptr), CPNSA_SUCCESS);
  const std::string here = cpnsa_last_error();
  EXPECT_THAT(here, HasSubstr("cpnsa_communicator_barrier: communicator: found NULL"));
  std::thread([] { EXPECT_STREQ(cpnsa_last_error(), ""); }).join();
  check_c(cpnsa_communicator_barrier(communicator));
  EXPECT_EQ(here, cpnsa_last_error());
}

}  // namespace
}  // namespace cpnsa::test
