#pragma once

// A step through the C interface that is right, for tests that spoil one thing of it.

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "tests/c/convert.hpp"

namespace cpnsa::test {

#define EXPECT_STATUS(expected, call, text)  \
  do {                                       \
    EXPECT_EQ(call, expected);               \
    EXPECT_THAT(cpnsa_last_error(), (text)); \
  } while (false)

constexpr std::int64_t tokens = 40;

inline cpnsa_config small_config() {
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

}  // namespace cpnsa::test
