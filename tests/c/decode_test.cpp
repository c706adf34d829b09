// Prefill and decoding through the C interface: the rows of a forward, and errors that only a C caller can make.

#include "tests/c/step.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;

/// One layer on one rank: q, k = v and gate for `tokens` tokens, and a cache of one sequence.
class CDecode : public testing::Test {
 protected:
  static constexpr std::int64_t page_count = tokens / 8, summary_pages = 1;

  void SetUp() override {
    check_c(cpnsa_communicator_create_threads(1, &communicator));
    check_c(cpnsa_device_create_cpu(&device));
    options.max_tokens = tokens;
    options.max_length = tokens;
    check_c(cpnsa_decoder_create(&config, &options, device, communicator, &decoder));
    std::size_t workspace_bytes = 0, schedule_bytes = 0;
    check_c(cpnsa_decoder_sizes(decoder, &workspace_bytes, &schedule_bytes));
    workspace = std::make_unique<Floats>(workspace_bytes / sizeof(float) + 1);
    schedule = std::make_unique<Floats>(schedule_bytes / sizeof(float) + 1);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i * i % 1013));
    cache_memory.resize(static_cast<std::size_t>(2 * page_count * 8 * 4));
    summary_memory.resize(static_cast<std::size_t>(2 * summary_pages * 64 * 4));
    cache.k.slc = {cache_memory.data(), CPNSA_F32, 4, {page_count, 8, 1, 4}};
    cache.v.slc = {cache_memory.data() + page_count * 8 * 4, CPNSA_F32, 4, {page_count, 8, 1, 4}};
    cache.summaries_k = {summary_memory.data(), CPNSA_F32, 4, {summary_pages, 64, 1, 4}};
    cache.summaries_v = {summary_memory.data() + summary_pages * 64 * 4, CPNSA_F32, 4, {summary_pages, 64, 1, 4}};
  }
  void TearDown() override {
    EXPECT_EQ(cpnsa_decoder_destroy(decoder), CPNSA_SUCCESS);
    EXPECT_EQ(cpnsa_device_destroy(device), CPNSA_SUCCESS);
    EXPECT_EQ(cpnsa_communicator_destroy(communicator), CPNSA_SUCCESS);
  }

  cpnsa_tensor rows(std::int64_t begin, std::int64_t count, std::int64_t heads, std::int64_t dim) {
    return {values.data() + begin * heads * dim, CPNSA_F32, 3, {count, heads, dim, 0}};
  }
  cpnsa_tensors inputs(std::int64_t begin, std::int64_t count) {
    cpnsa_tensors inputs = CPNSA_TENSORS_INIT;
    inputs.q = rows(begin, count, 2, 4);
    inputs.gate = rows(begin, count, 2, 3);
    inputs.k.cmp = inputs.k.slc = inputs.k.win = rows(begin, count, 1, 4);
    inputs.v.cmp = inputs.v.slc = inputs.v.win = rows(begin, count, 1, 4);
    return inputs;
  }
  cpnsa_status prepare(std::int64_t begin, std::int64_t count) {
    length = static_cast<std::int32_t>(begin);
    cu_q[1] = static_cast<std::int32_t>(count);
    cpnsa_decode_batch batch = CPNSA_DECODE_BATCH_INIT;
    batch.sequences = 1, batch.tokens = count, batch.num_slots = 1;
    batch.lengths = &length;
    batch.cu_q = cu_q;
    batch.slc = {table, page_count, page_count};
    batch.summaries = {&summary_table, 1, summary_pages};
    return cpnsa_decoder_prepare(decoder, &batch, schedule->data(), nullptr);
  }
  cpnsa_status step(std::int64_t begin, std::int64_t count, float* out) {
    cpnsa_decode_outputs outputs = CPNSA_DECODE_OUTPUTS_INIT;
    outputs.out = {out + begin * 2 * 4, CPNSA_F32, 3, {count, 2, 4, 0}};
    const cpnsa_tensors views = inputs(begin, count);
    return cpnsa_decoder_step(decoder, &views, &cache, &outputs, workspace->data(), nullptr);
  }

  std::vector<float> forward() {
    Step layer(communicator);
    layer.options.backward = 0;
    check_c(cpnsa_attention_create(&layer.config, &layer.options, layer.partition, layer.device, layer.communicator,
                                   &layer.attention));
    std::size_t bytes = 0;
    check_c(cpnsa_attention_sizes(layer.attention, nullptr, &bytes, nullptr));
    Floats memory(bytes / sizeof(float) + 1);
    std::vector<float> out(static_cast<std::size_t>(tokens * 2 * 4));
    const cpnsa_tensor view = {out.data(), CPNSA_F32, 3, {tokens, 2, 4, 0}};
    const cpnsa_tensors views = inputs(0, tokens);
    check_c(cpnsa_forward(layer.attention, &views, &view, nullptr, nullptr, memory.data(), nullptr));
    return out;
  }

  cpnsa_config config = small_config();
  cpnsa_decoder_options options = CPNSA_DECODER_OPTIONS_INIT;
  cpnsa_communicator communicator = nullptr;
  cpnsa_device device = nullptr;
  cpnsa_decoder decoder = nullptr;
  cpnsa_kv_cache cache = CPNSA_KV_CACHE_INIT;
  std::unique_ptr<Floats> workspace, schedule;
  std::vector<float> values = std::vector<float>(tokens * 2 * 4), cache_memory, summary_memory;
  std::int32_t table[page_count] = {3, 0, 4, 1, 2}, summary_table = 0, length = 0, cu_q[2] = {0, 0};
};

TEST_F(CDecode, StepsGiveTheRowsOfTheForward) {
  const std::vector<float> expected = forward();
  std::vector<float> out(expected.size());
  std::int64_t begin = 0;
  for (const std::int64_t count : {17, 1, 1, 5, 16}) {
    ASSERT_EQ(prepare(begin, count), CPNSA_SUCCESS) << cpnsa_last_error();
    ASSERT_EQ(step(begin, count, out.data()), CPNSA_SUCCESS) << cpnsa_last_error();
    begin += count;
  }
  ASSERT_EQ(begin, tokens);
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-5) << i;
  cpnsa_decode_statistics statistics = CPNSA_DECODE_STATISTICS_INIT;
  ASSERT_EQ(cpnsa_decoder_statistics(decoder, &statistics), CPNSA_SUCCESS);
  EXPECT_EQ(statistics.steps, 5);
  EXPECT_EQ(statistics.messages, 0);
}

TEST_F(CDecode, TheLayoutOfPagesIsTold) {
  cpnsa_cache_layout layout = CPNSA_CACHE_LAYOUT_INIT;
  ASSERT_EQ(cpnsa_decoder_layout(decoder, CPNSA_CACHE_WIN, &layout), CPNSA_SUCCESS);
  EXPECT_EQ(layout.pages_with, CPNSA_CACHE_SLC);
  EXPECT_EQ(layout.ranks, 1);
  EXPECT_EQ(layout.key_rows, 8);
  EXPECT_EQ(layout.page_bytes, 2 * 8 * 4 * sizeof(float));
  std::int64_t columns = 0, shareable = 0;
  ASSERT_EQ(cpnsa_decoder_pages(decoder, CPNSA_CACHE_SLC, 17, &columns, nullptr, &shareable), CPNSA_SUCCESS);
  EXPECT_EQ(columns, 3);
  EXPECT_EQ(shareable, 2);
  EXPECT_STREQ(cpnsa_decode_traffic_name(0), "log_sum_exps");
  EXPECT_EQ(cpnsa_decode_traffic_name(100), nullptr);
}

TEST_F(CDecode, WrongCallsAreRefused) {
  std::vector<float> out(values.size());
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step(0, 1, out.data()), HasSubstr("expected prepare() before it"));
  ASSERT_EQ(prepare(0, 4), CPNSA_SUCCESS);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step(0, 3, out.data()), HasSubstr("found f32 [3, 2, 4], expected f32 [4, 2, 4]"));
  cache.k.slc.shape[1] = 9;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step(0, 4, out.data()), HasSubstr("cache.k.slc: found"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_decoder_prepare(decoder, nullptr, nullptr, nullptr),
                HasSubstr("batch: found NULL"));
  cpnsa_cache_layout layout = CPNSA_CACHE_LAYOUT_INIT;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_decoder_layout(decoder, 5, &layout), HasSubstr("part: found 5"));
  options.page = 12;
  cpnsa_decoder another = nullptr;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_decoder_create(&config, &options, device, communicator, &another),
                HasSubstr("page: found 12 tokens, expected a multiple of select_block 8"));
  EXPECT_STATUS(CPNSA_ERROR_HANDLE, cpnsa_decoder_sizes(another, nullptr, nullptr), HasSubstr("decoder: found NULL"));
}

}  // namespace
}  // namespace cpnsa::test
