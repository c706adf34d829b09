// The CUDA device refuses what it does not support, on every GPU: no kernel runs.

#include "kernels/cuda/common/limits.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "cpnsa/error.hpp"

namespace cpnsa::test {
namespace {

std::string refusal(DType dtype, const std::function<void(Config&)>& change) {
  Config config;
  config.num_q_heads = 64, config.num_kv_heads = 4;
  config.head_dim_qk = config.head_dim_v = 128;
  config.compress_hidden_k = config.compress_hidden_v = 256;
  change(config);
  try {
    cuda::check_limits(config, dtype);
    return "none";
  } catch (const UnsupportedError& error) {
    return error.what();
  }
}

std::string refusal(const std::function<void(Config&)>& change) {
  return refusal(DType::bf16, change);
}

auto found(const std::string& what) {
  return testing::HasSubstr("cuda device: found " + what + ", supported are");
}

TEST(CudaLimits, AreSaid) {
  EXPECT_EQ(refusal([](Config&) {}), "none");
  EXPECT_THAT(refusal(DType::f32, [](Config&) {}), found("dtype f32"));
  EXPECT_THAT(refusal([](Config& c) { c.head_dim_qk = 260; }), found("head_dim_qk 260"));
  EXPECT_THAT(refusal([](Config& c) { c.head_dim_v = 20; }), found("head_dim_v 20"));
  EXPECT_THAT(refusal([](Config& c) { c.compress_hidden_v = 20; }), found("compress_hidden_v 20"));
  EXPECT_EQ(refusal([](Config& c) { c.num_q_heads = 1000, c.num_kv_heads = 2; }), "none");
  EXPECT_EQ(refusal([](Config& c) { c.select_count = 128; }), "none");
  EXPECT_THAT(refusal([](Config& c) { c.num_q_heads = c.num_kv_heads = 65536; }),
              found("num_kv_heads times slices of query heads 65536 times 1"));
  EXPECT_THAT(refusal([](Config& c) { c.num_kv_heads = 32768, c.num_q_heads = 65 * c.num_kv_heads; }),
              found("num_kv_heads times slices of query heads 32768 times 2"));
  EXPECT_THAT(refusal([](Config& c) { c.select_count = 129; }), found("select_count 129"));
  EXPECT_THAT(refusal([](Config& c) { c.compress_stride = 1, c.select_block = 128; }),
              found("(select_block + compress_block) / compress_stride 160"));
}

}  // namespace
}  // namespace cpnsa::test
