#include "cpnsa/decoder.hpp"

#include <memory>
#include <tuple>

#include "c/objects.hpp"
#include "c/parameters.hpp"

using namespace cpnsa::c;
using cpnsa::CachePart;
using cpnsa::Decoder;

namespace {

cpnsa::DecoderOptions to_options(const cpnsa_decoder_options* given) {
  const auto options =
      read<cpnsa_decoder_options>(given, CPNSA_DECODER_OPTIONS_INIT, sizeof(cpnsa_decoder_options), "options");
  cpnsa::DecoderOptions result;
  result.cache.dtype = to_enum<cpnsa::DType>(options.dtype, "dtype");
  result.cache.page = options.page;
  result.cache.summary_page = options.summary_page;
  result.cache.shared_branches = to_bool(options.shared_branches, "shared_branches");
  result.cache.replicate_summaries = to_bool(options.replicate_summaries, "replicate_summaries");
  result.max_sequences = options.max_sequences;
  result.max_tokens = options.max_tokens;
  result.max_length = options.max_length;
  result.checked = to_bool(options.checked, "checked");
  result.compare_parameters = to_bool(options.compare_parameters, "compare_parameters");
  return result;
}

cpnsa::PageTable to_table(const cpnsa_page_table& table) {
  return {table.pages, table.columns, table.pool_pages};
}

cpnsa::DecodeBatch to_batch(const cpnsa_decode_batch* given) {
  const auto batch = read<cpnsa_decode_batch>(given, CPNSA_DECODE_BATCH_INIT, sizeof(cpnsa_decode_batch), "batch");
  cpnsa::DecodeBatch result;
  result.sequences = batch.sequences, result.tokens = batch.tokens, result.num_slots = batch.num_slots;
  result.slots = batch.slots, result.lengths = batch.lengths, result.cu_q = batch.cu_q;
  result.cmp = to_table(batch.cmp), result.slc = to_table(batch.slc);
  result.win = to_table(batch.win), result.summaries = to_table(batch.summaries);
  return result;
}

cpnsa::BranchTensors to_branches(const cpnsa_branches& branches, const std::string& name) {
  return {to_view(branches.cmp, name + ".cmp"), to_view(branches.slc, name + ".slc"),
          to_view(branches.win, name + ".win")};
}

cpnsa::KvCache to_cache(const cpnsa_kv_cache* given) {
  const auto cache = read<cpnsa_kv_cache>(given, CPNSA_KV_CACHE_INIT, sizeof(cpnsa_kv_cache), "cache");
  return {to_branches(cache.k, "cache.k"), to_branches(cache.v, "cache.v"),
          to_view(cache.summaries_k, "cache.summaries_k"), to_view(cache.summaries_v, "cache.summaries_v")};
}

cpnsa::DecodeOutputs to_outputs(const cpnsa_decode_outputs* given) {
  const auto outputs =
      read<cpnsa_decode_outputs>(given, CPNSA_DECODE_OUTPUTS_INIT, sizeof(cpnsa_decode_outputs), "outputs");
  return {to_view(outputs.out, "out"), outputs.selected, outputs.log_sum_exp};
}

// Runs one collective call of a decoder with its prepared arguments.
template <class Prepare, class Call>
void run(cpnsa_decoder handle, Prepare prepare, Call call) {
  const auto object = decoders().find(handle);
  const InUse decoder(object->exclusive), communicator(object->communicator->exclusive);
  call(*object->decoder, prepared_or_refused(prepare, [&](const char* problem) { object->decoder->refuse(problem); }));
}

}  // namespace

cpnsa_status cpnsa_decoder_create(const cpnsa_config* config, const cpnsa_decoder_options* options, cpnsa_device device,
                                  cpnsa_communicator communicator, cpnsa_decoder* out) {
  return guarded(__func__, [&] {
    const auto ranks = communicators().find(communicator);
    const InUse in_use(ranks->exclusive);
    const auto [made_config, made_options, made_device] = prepared_or_refused(
        [&] {
          not_null(out, "decoder") = nullptr;
          return std::tuple(to_config(config), to_options(options), devices().find(device));
        },
        [&](const char* problem) { cpnsa::refuse(*ranks->communicator, problem); });
    const auto object = std::make_shared<DecoderObject>(made_device, ranks);
    object->decoder = std::make_unique<Decoder>(made_config, made_options, *made_device, *ranks->communicator);
    *out = decoders().add(object);
  });
}

cpnsa_status cpnsa_decoder_destroy(cpnsa_decoder decoder) {
  return guarded(__func__, [&] { decoders().remove(decoder); });
}

cpnsa_status cpnsa_decoder_sizes(cpnsa_decoder decoder, size_t* workspace_bytes, size_t* schedule_bytes) {
  return guarded(__func__, [&] {
    const auto object = decoders().find(decoder);
    if (workspace_bytes) *workspace_bytes = object->decoder->workspace_bytes();
    if (schedule_bytes) *schedule_bytes = object->decoder->schedule_bytes();
  });
}

cpnsa_status cpnsa_decoder_layout(cpnsa_decoder decoder, int32_t number, cpnsa_cache_layout* out) {
  return guarded(__func__, [&] {
    const auto object = decoders().find(decoder);
    const auto part = to_enum<CachePart>(number, "part");
    const cpnsa::KvCacheLayout& layout = object->decoder->layout();
    const std::size_t size = not_null(out, "layout").struct_size;
    check_struct_size("layout", size, sizeof(cpnsa_cache_layout), sizeof(cpnsa_cache_layout));
    const cpnsa_cache_layout result{size,
                                    to_number(layout.pages_with(part)),
                                    layout.ranks_of(part),
                                    layout.key_rows(part),
                                    layout.value_rows(part),
                                    layout.page_bytes(part)};
    std::memcpy(out, &result, sizeof result);
  });
}

cpnsa_status cpnsa_decoder_pages(cpnsa_decoder decoder, int32_t number, int64_t length, int64_t* columns,
                                 int64_t* first_token, int64_t* shareable) {
  return guarded(__func__, [&] {
    const auto object = decoders().find(decoder);
    const auto part = to_enum<CachePart>(number, "part");
    const cpnsa::KvCacheLayout& layout = object->decoder->layout();
    const int rank = object->communicator->communicator->rank();
    if (length < 0 || length > cpnsa::schema::max_extent)
      throw cpnsa::ArgumentError(fmt::format("length: found {}, expected 0 to {}", length, cpnsa::schema::max_extent));
    if (columns) *columns = layout.pages_of(part, length, rank);
    if (first_token) *first_token = layout.first_token(part, length);
    if (shareable) *shareable = layout.shareable_pages(part, length, rank);
  });
}

cpnsa_status cpnsa_decoder_prepare(cpnsa_decoder decoder, const cpnsa_decode_batch* batch, void* schedule,
                                   void* stream) {
  return guarded(__func__, [&] {
    run(
        decoder, [&] { return to_batch(batch); },
        [&](Decoder& made, const cpnsa::DecodeBatch& prepared) { made.prepare(prepared, schedule, {stream}); });
  });
}

cpnsa_status cpnsa_decoder_step(cpnsa_decoder decoder, const cpnsa_tensors* inputs, const cpnsa_kv_cache* cache,
                                const cpnsa_decode_outputs* outputs, void* workspace, void* stream) {
  return guarded(__func__, [&] {
    run(
        decoder, [&] { return std::tuple(to_inputs(inputs), to_cache(cache), to_outputs(outputs)); },
        [&](Decoder& made, const auto& prepared) {
          const auto& [views, cache_views, output_views] = prepared;
          made.step(views, cache_views, output_views, workspace, {stream});
        });
  });
}

cpnsa_status cpnsa_decoder_statistics(cpnsa_decoder decoder, cpnsa_decode_statistics* out) {
  return guarded(__func__, [&] {
    const auto object = decoders().find(decoder);
    const cpnsa::DecodeStatistics& statistics = object->decoder->statistics();
    cpnsa_decode_statistics result{};
    static_assert(std::extent_v<decltype(result.bytes_received)> >= cpnsa::decode_traffic_kinds);
    const std::size_t size = not_null(out, "statistics").struct_size;
    check_struct_size("statistics", size, sizeof result, sizeof result);
    result.struct_size = size;
    result.steps = statistics.steps;
    result.messages = statistics.messages;
    std::copy(statistics.bytes_received.begin(), statistics.bytes_received.end(), result.bytes_received);
    std::memcpy(out, &result, sizeof result);
  });
}

const char* cpnsa_decode_traffic_name(int index) {
  return index >= 0 && index < cpnsa::decode_traffic_kinds ? name_of(static_cast<cpnsa::DecodeTraffic>(index)).data()
                                                           : nullptr;
}
